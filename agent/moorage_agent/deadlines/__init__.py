"""Apps' deadlines, kept on disk, and the switch that stops apps if no controller does."""
