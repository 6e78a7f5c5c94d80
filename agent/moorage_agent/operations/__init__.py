"""Starts, stops and restarts on this host."""
