"""Docker Compose: its command lines, its output, and the checks of an app's compose files."""
