"""`python -m moorage_agent` is `moorage-agent`."""

from moorage_agent.cli import main

main()
