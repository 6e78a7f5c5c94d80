"""The audit log: write, read and archive its entries."""
