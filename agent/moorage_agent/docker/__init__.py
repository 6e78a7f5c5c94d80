"""Observation of this host's Docker Engine."""
