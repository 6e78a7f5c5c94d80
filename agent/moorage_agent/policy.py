"""The host's own policy: the directories below which apps may lie. Whatever a controller says, this holds."""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path

from moorage_agent.errors import RefusalError
from moorage_agent.settings import write_file

_HEADER = """\
# Directories below which a controller may run Compose apps. An app's directory is compared with its symbolic links
# resolved. Nothing listed means nothing allowed. A change counts from the next call on, without a restart.
"""


class Policy:
    """The policy file, read anew whenever it changed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp: tuple[int, int] | None = None
        self._roots: tuple[str, ...] = ()

    def roots(self) -> Sequence[str]:
        """Return the allowed roots, links resolved. Raises RefusalError where the file can't be read."""
        try:
            about = self._file.stat()
            if self._stamp != (about.st_mtime_ns, about.st_ino):
                listed = tomllib.loads(self._file.read_text()).get("allowed_roots", [])
                self._roots = tuple(os.path.realpath(str(root)) for root in listed)
                self._stamp = (about.st_mtime_ns, about.st_ino)
        except (OSError, ValueError) as error:
            self._stamp = None
            raise RefusalError(
                "policy_unreadable", f"The policy {self._file} on the host can't be read ({error}): mend it there."
            ) from None
        return self._roots

    def real_directory(self, cd_path: str) -> str:
        """Return the directory with its links resolved, whether or not it exists.

        Raises RefusalError: `invalid_request` for a path that isn't absolute, `path_not_allowed` outside the roots.
        """
        if not cd_path.startswith("/") or "\0" in cd_path:
            raise RefusalError("invalid_request", "The directory of an app must be an absolute path.")
        real = os.path.realpath(cd_path)
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
    """Write a policy file that allows these roots."""
    lines = "".join(f"    {_toml_string(root)},\n" for root in roots)
    write_file(file, f"{_HEADER}allowed_roots = [\n{lines}]\n".encode(), mode=0o644)


def _toml_string(text: str) -> str:
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text)
    return f'"{escaped}"'
