"""Changes as a stream of events."""
