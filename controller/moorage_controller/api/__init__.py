"""HTTP: parse, one service call, convert."""
