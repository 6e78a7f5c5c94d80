"""The audit log: written with each change, read, archived."""
