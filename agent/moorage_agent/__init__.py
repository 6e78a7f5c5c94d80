"""The agent: runs Docker Compose on one host, for one controller."""

import os

# grpc.aio and child processes don't go together without this; it must stand before grpc is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
