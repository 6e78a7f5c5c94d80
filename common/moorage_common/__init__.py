"""Code shared by Moorage's controller and agent."""
