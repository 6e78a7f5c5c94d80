"""The Docker Engine: its HTTP API, containers, logs, and the assignment of containers to apps."""
