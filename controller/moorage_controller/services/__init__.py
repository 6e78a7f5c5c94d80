"""Decisions, transactions and audit."""
