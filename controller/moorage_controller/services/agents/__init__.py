"""Agents: installed, enrolled, renewed, removed."""
