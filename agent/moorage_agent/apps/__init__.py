"""Apps' directories on this host: allowed by its policy, read, and known by their containers."""
