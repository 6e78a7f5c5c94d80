"""The host's own policy: the directories below which apps may lie. Whatever a controller says, this holds."""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path

from moorage_agent.errors import RefusalError
from moorage_agent.settings import write_file

_HEADER = """\
# Directories below which a controller may run Compose apps, as absolute paths. An app's directory, and that of its
# compose file, are compared with their symbolic links resolved. Nothing listed means nothing allowed. A change counts
# from the next call on, without a restart.
"""


class Policy:
    """The policy file, read anew whenever it changed; its links are resolved anew for each question."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read: tuple[tuple[int, ...], Sequence[str]] = ((), ())

    def roots(self) -> Sequence[str]:
        """Return the allowed roots, links resolved. Raises RefusalError where the file can't be read."""
        try:
            about = self._file.stat()
            # The size, too: a file that is being written anew is empty for a moment, within one tick of the clock.
            stamp = (about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_size)
            if self._read[0] != stamp:
                self._read = (stamp, _listed(self._file.read_text(encoding="utf-8")))
            return tuple(os.path.realpath(root) for root in self._read[1])
        except (OSError, ValueError) as error:
            raise RefusalError(
                "policy_unreadable", f"The policy {self._file} on the host can't be read ({error}): mend it there."
            ) from None

    def real_directory(self, path: str) -> str:
        """Return the directory with its links resolved, whether or not it exists.

        Raises RefusalError: `invalid_request` for a path that isn't absolute or can't be shown on one line,
        `path_not_allowed` outside the roots.
        """
        if not path.startswith("/") or "\0" in path:
            raise RefusalError("invalid_request", "The directory of an app must be an absolute path.")
        real = os.path.realpath(path)
        if not _speakable(path) or not _speakable(real):
            raise RefusalError(
                "invalid_request", f"The directory {path!a} has a line break in it, or is not UTF-8: rename it."
            )
        roots = self.roots()
        if not any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots):
            allowed = ", ".join(roots) or "nothing yet"
            raise RefusalError(
                "path_not_allowed",
                f"{real} is outside the directories that this host's policy allows ({allowed}): "
                f"an admin of the host can add it to {self._file}.",
            )
        return real


def write_policy(file: Path, roots: Sequence[str]) -> None:
    """Write a policy file that allows these roots. Raises ValueError for one that isn't UTF-8."""
    lines = "".join(f"    {_toml_string(root)},\n" for root in roots)
    write_file(file, f"{_HEADER}allowed_roots = [\n{lines}]\n".encode(), mode=0o644)


def _listed(text: str) -> Sequence[str]:
    """Return the roots a policy lists. Raises ValueError for anything but a list of absolute paths."""
    listed = tomllib.loads(text).get("allowed_roots", [])
    # Strict: a lone string would be read letter by letter, "" would be the agent's own directory.
    if not isinstance(listed, list) or not all(isinstance(r, str) and r.startswith("/") for r in listed):
        raise ValueError("allowed_roots must be a list of absolute paths")
    return listed


def _speakable(path: str) -> bool:
    """Whether Compose's lines about a path, and gRPC's messages, can hold it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return not {"\n", "\r"} & set(path)


def _toml_string(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"The directory {text!a} is not UTF-8: rename it.") from None
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text)
    return f'"{escaped}"'
