"""The agent as a systemd service: what it tells the service manager, and operations in scopes of their own.

The messages are sd_notify(3)'s, which documents them for those who would not link libsystemd; the packages that wrap
these dozen lines are no longer kept.
"""

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from moorage_agent.errors import SetupError

_SYSTEMD_RUN = ("/usr/bin/systemd-run", "/bin/systemd-run")


def notify(message: str) -> None:
    """Tell systemd, such as `READY=1`; nothing where it isn't systemd that started this agent."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        # A leading @ stands for the NUL of an abstract socket.
        sender.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sender.send(message.encode())


async def prove_alive() -> None:
    """Tell systemd twice in its WatchdogSec that the event loop turns: one that hangs is killed and started anew."""
    microseconds = int(os.environ.get("WATCHDOG_USEC") or 0)
    while microseconds:
        notify("WATCHDOG=1")
        await asyncio.sleep(microseconds / 2_000_000)


def scope_launcher() -> Sequence[str]:
    """Return what goes before the argv of an operation, so that nothing that ends this service ends the operation.

    Asked for by MOORAGE_AGENT_SCOPES=1, as the service's unit does. Raises SetupError where there is no systemd-run.
    """
    if os.environ.get("MOORAGE_AGENT_SCOPES") != "1":
        return ()
    found = next((path for path in _SYSTEMD_RUN if os.access(path, os.X_OK)), None)
    if found is None:
        raise SetupError("MOORAGE_AGENT_SCOPES is 1, but there is no systemd-run here: unset it.")
    about = ("--unit=moorage-op-{id}", "--description=Moorage operation {id}")
    return (found, "--quiet", "--collect", "--scope", *about, "--")
