"""Real programs as child processes: Engines, databases, SSH servers, controller and agent."""
