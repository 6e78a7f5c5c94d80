"""The change feed: changes as a stream of events."""
