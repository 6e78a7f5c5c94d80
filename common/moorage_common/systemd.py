"""Notifications to systemd, for a program that systemd started.

The messages are those of sd_notify(3), which documents the protocol for programs that don't link libsystemd; the
packages that wrap these dozen lines are unmaintained.
"""

import asyncio
import os
import socket
from contextlib import suppress


def notify(message: str) -> None:
    """Send a state such as `READY=1` to systemd; does nothing if systemd didn't start this program."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        # A leading @ represents the NUL of an abstract socket.
        sender.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sender.send(message.encode())


async def prove_alive() -> None:
    """Ping systemd twice per WatchdogSec from the event loop: a program whose loop hangs is restarted."""
    microseconds = int(os.environ.get("WATCHDOG_USEC") or 0)
    while microseconds:
        notify("WATCHDOG=1")
        await asyncio.sleep(microseconds / 2_000_000)
