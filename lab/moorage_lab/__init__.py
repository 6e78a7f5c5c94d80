"""Real Docker Engines, images and processes, for `make run` and for the tests."""
