"""The gRPC server: connections, calls and messages."""
