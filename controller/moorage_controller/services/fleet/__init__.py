"""Servers and the hosts behind them, observed."""
