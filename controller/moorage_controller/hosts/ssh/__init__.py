"""Hosts without an agent, over SSH: one connection per host, with the same journal and Compose as an agent."""
