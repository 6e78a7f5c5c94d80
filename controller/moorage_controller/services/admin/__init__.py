"""Backups, retention, metrics and health."""
