"""Servers and projects: management, host checks and observations."""
