"""Logins, users and API tokens over HTTP."""
