"""Hosts without an agent, over plain SSH: one connection a host, the same journal, the same Compose."""
