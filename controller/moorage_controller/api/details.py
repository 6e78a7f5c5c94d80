"""What a reader of the API's document is told beyond the route table; common errors follow from the table itself."""

LIVE = frozenset({"/api/auth/verify", "/api/servers/{id}/status", "/healthz", "/readyz"})
"""GETs that ask anew each time, and so bear no ETag."""
