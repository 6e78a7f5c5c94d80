"""The controller: REST API, operations and auto-stop."""

import os

# uvloop, grpc.aio and child processes are incompatible without this; it must be set before the first grpc import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
