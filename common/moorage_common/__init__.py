"""What Moorage's controller and agent share."""
