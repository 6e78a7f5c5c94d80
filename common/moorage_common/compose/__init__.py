"""Docker Compose: its command lines, what it prints, and what an app's files make the host read."""
