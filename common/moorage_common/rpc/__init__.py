"""The gRPC messages between controller and agent."""
