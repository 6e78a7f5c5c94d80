"""Servers, their agents and enrollment, and projects over HTTP."""
