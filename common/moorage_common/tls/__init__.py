"""Mutual TLS: certificates, keys and join tokens."""
