"""Apps and their runs: starts, extensions, deadlines, auto-stop."""
