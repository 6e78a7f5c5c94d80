"""The agent: runs Docker Compose on one host, for one controller."""

import os

# Without this grpc.aio and child processes conflict; it must be set before grpc is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
