"""Connections to SSH hosts, and the shells and channels over them."""
