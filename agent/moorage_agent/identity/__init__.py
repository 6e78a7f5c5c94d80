"""Who this agent is: its enrollment and its certificates."""
