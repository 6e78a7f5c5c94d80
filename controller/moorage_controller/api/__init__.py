"""The REST API: each handler parses a request, calls one service, and converts the result."""
