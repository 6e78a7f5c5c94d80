"""Agents: installation, enrollment, certificate renewal and removal."""
