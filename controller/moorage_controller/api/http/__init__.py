"""HTTP processing common to all routes."""
