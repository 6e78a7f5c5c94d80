"""Whole hosts that boot systemd, their file systems and networks."""
