"""The transports to hosts, agent and SSH, behind one interface."""
