"""What goes on without a caller."""
