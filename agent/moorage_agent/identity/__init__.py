"""The agent's identity: its enrolment and its certificates."""
