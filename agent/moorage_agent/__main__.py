"""`python -m moorage_agent` is `moorage-agent`; also the entry point of a bundled agent."""

import sys

from moorage_common.frozen import clean_environment

clean_environment()
if sys.argv[1:2] == ["sweep"]:
    from moorage_agent.operations import sweep

    sys.exit(sweep.main(sys.argv[2:]))  # runs at each stop: without gRPC it starts in a third of the time
elif sys.argv[1:2] == ["directories"]:
    from moorage_agent.apps import directories

    directories.main(sys.argv[2:])
else:
    from moorage_agent.cli import main

    main()
