"""Tables, and plain functions on a connection that return dataclasses."""
