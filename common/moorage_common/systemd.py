"""What a program tells systemd of itself, where that started it.

The messages are sd_notify(3)'s, which documents them for those who would not link libsystemd; the packages that wrap
these dozen lines are no longer kept.
"""

import asyncio
import os
import socket
from contextlib import suppress


def notify(message: str) -> None:
    """Tell systemd, such as `READY=1`; nothing where it isn't systemd that started this program."""
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
