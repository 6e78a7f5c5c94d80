"""Apps, their containers and logs, and operations over HTTP."""
