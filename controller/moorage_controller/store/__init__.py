"""Persistence: the schema, and functions on a connection that return dataclasses."""
