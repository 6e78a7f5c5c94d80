"""Ports and bridges of this machine, without the `ip` program, which a minimal system lacks."""

import errno
import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress
from pathlib import Path

_ADD_BRIDGE, _DELETE_BRIDGE = 0x89A0, 0x89A1
_GET_FLAGS, _SET_FLAGS = 0x8913, 0x8914
_SET_ADDRESS, _SET_NETMASK = 0x8916, 0x891C
"""Requests of netdevice(7) and the kernel's if_bridge."""
_UP = 0x1


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether the port accepts connections."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def bridge_exists(name: str) -> bool:
    """Return whether there is a bridge of that name."""
    return Path(f"/sys/class/net/{name}/bridge").is_dir()


def free_network(seed: int) -> ipaddress.IPv4Network:
    """Return a 10.N.0.0/16 to which this machine has no route; `seed` determines the first candidate."""
    taken = _routes()
    for step in range(1 << 8):
        number = (seed + step) % (1 << 8)
        candidate = ipaddress.IPv4Network(((10 << 24) | (number << 16), 16))
        if not any(candidate.overlaps(other) for other in taken):
            return candidate
    raise RuntimeError("Every network within 10.0.0.0/8 is in use on this machine: no Engine can be started here.")


def make_bridge(name: str, address: ipaddress.IPv4Interface) -> None:
    """Make a bridge with that address; replace an existing one."""
    remove_bridge(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _ADD_BRIDGE, name.encode() + b"\0")
        fcntl.ioctl(control, _SET_ADDRESS, _address_request(name, address.ip))
        fcntl.ioctl(control, _SET_NETMASK, _address_request(name, address.netmask))
        _set_up(control, name, up=True)


def remove_bridge(name: str) -> None:
    """Remove a bridge, if there is one of that name."""
    if not bridge_exists(name):
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, suppress(FileNotFoundError):
        _set_up(control, name, up=False)
        fcntl.ioctl(control, _DELETE_BRIDGE, name.encode() + b"\0")


def _routes() -> list[ipaddress.IPv4Network]:
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        _, destination, _, _, _, _, _, mask, *_ = line.split()
        if int(mask, 16):
            address, netmask = (
                struct.unpack("<I", struct.pack(">I", int(text, 16)))[0] for text in (destination, mask)
            )
            found.append(ipaddress.IPv4Network((address, netmask.bit_count())))
    return found


def _address_request(name: str, address: ipaddress.IPv4Address) -> bytes:
    return struct.pack("16sHH4s16x", name.encode(), socket.AF_INET, 0, address.packed)


def _set_up(control: socket.socket, name: str, *, up: bool) -> None:
    request = fcntl.ioctl(control, _GET_FLAGS, struct.pack("16sH22x", name.encode(), 0))
    flags = struct.unpack("16sH22x", request)[1]
    flags = flags | _UP if up else flags & ~_UP
    fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH22x", name.encode(), flags))
