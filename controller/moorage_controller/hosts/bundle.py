"""The agent's bundle for installation on hosts, built by `make agent-bundle`."""

import hashlib
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


class NoBundleError(Exception):
    """No usable bundle; `str()` is a sentence."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle: its build, such as `0.1.0-1a2b3c4d`, its content (a tar.gz) and the content's SHA-256 (hex)."""

    build: str
    content: bytes
    digest: str


def load(path: Path | None) -> Bundle:
    """Read the bundle at MOORAGE_AGENT_BUNDLE; the last one is cached. Blocks. Raises NoBundleError."""
    if path is None:
        raise NoBundleError(
            "This controller has no agent to install: set MOORAGE_AGENT_BUNDLE to the bundle's path (`make "
            "agent-bundle` makes one) and start it again."
        )
    try:
        about = path.stat()
        return _read(path, about.st_mtime_ns, about.st_size)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise NoBundleError(f"MOORAGE_AGENT_BUNDLE {path} can't be read ({error}).") from None


@lru_cache(maxsize=1)
def _read(path: Path, modified: int, size: int) -> Bundle:
    """Read a bundle; its mtime and size are part of the cache key."""
    del modified, size
    with tarfile.open(path, "r:gz") as tar:
        first = tar.next()
    if first is None or not first.isdir() or "/" in first.name:
        raise tarfile.TarError("it is no bundle of an agent")
    content = path.read_bytes()
    return Bundle(first.name, content, hashlib.sha256(content).hexdigest())
