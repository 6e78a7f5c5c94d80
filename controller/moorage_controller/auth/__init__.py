"""Authentication and authorization: passwords, tokens, roles, and rate limits."""
