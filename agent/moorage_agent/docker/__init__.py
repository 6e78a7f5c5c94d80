"""The Docker Engine of this host, observed."""
