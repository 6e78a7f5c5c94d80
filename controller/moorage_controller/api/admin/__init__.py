"""The audit log, events, health and metrics over HTTP."""
