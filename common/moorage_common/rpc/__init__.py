"""The wire messages between controller and agent."""
