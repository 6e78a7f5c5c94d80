"""The tables, and plain functions on a connection, one file a table."""
