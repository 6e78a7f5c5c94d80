"""Queries: functions on a connection, one module per table."""
