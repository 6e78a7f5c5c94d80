"""How long apps may run, kept on disk, and the switch that stops them where no controller does."""
