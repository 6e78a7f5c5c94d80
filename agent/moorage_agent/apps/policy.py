"""The host's own policy: the allowed locations and capabilities of apps, which no controller can override."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from moorage_common.compose.rules import Rules, is_below, parse_rules
from moorage_common.files import write_atomic

from moorage_agent.errors import RefusalError

_HEADER = """\
# What a controller may have done on this host. A change counts from the next call on, without a restart.
#
# allowed_roots           Directories below which Compose apps may lie, as absolute paths. An app's directory, that of
#                         its compose file, and all that its compose files name (include, extends, env_file, secrets,
#                         build and so on) are compared with their symbolic links resolved. Nothing listed means
#                         nothing allowed.
# allow_paths             More files and directories that compose files may name, where no apps lie: ["/etc/ssl/certs"].
# allow_bind_mounts       true (the default): containers may mount anything of this host, as with Docker itself, which
#                         makes who writes a compose file root here. false: nothing. Or a list of directories.
# allow_providers         Types that `provider:` may name: ["model"]. Each is a program that Compose runs on this host,
#                         with the variables of the app's .env. None by default.
# allow_remote_resources  true: images may be built from git and web addresses. false by default. (Compose files are
#                         never fetched from elsewhere.)
"""


class Policy:
    """The policy file, read again after each change; `real_path` resolves its symlinks again for each question."""

    def __init__(self, file: Path, real_path: Callable[[str], str] = os.path.realpath) -> None:
        self._file = file
        self._real_path = real_path
        self._read: tuple[tuple[int, ...], Rules] = ((), Rules(()))

    def roots(self) -> Sequence[str]:
        """Return the allowed roots, symlinks resolved. Raises RefusalError if the file can't be read."""
        return self.rules().roots

    def rules(self) -> Rules:
        """Return the policy's rules, symlinks resolved. Raises RefusalError if the file can't be read."""
        try:
            about = self._file.stat()
            # The size, too: a file that is being rewritten is briefly empty, within one tick of the clock.
            stamp = (about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_size)
            if self._read[0] != stamp:
                self._read = (stamp, parse_rules(self._file.read_text(encoding="utf-8")))
            listed = self._read[1]
            return listed.resolved({path: self._real_path(path) for path in listed.listed})
        except (OSError, ValueError) as error:
            raise RefusalError(
                "policy_unreadable", f"The policy {self._file} on the host can't be read ({error}): mend it there."
            ) from None

    def real_directory(self, path: str) -> str:
        """Return the directory with its symlinks resolved, whether or not it exists.

        Raises RefusalError: `invalid_request` for a path that isn't absolute or can't be shown on one line,
        `path_not_allowed` outside the roots.
        """
        return self._allowed(path, os.path.realpath)

    def unresolved_directory(self, path: str) -> str:
        """Return the directory unresolved, if its symlinks can't be resolved now. Raises as `real_directory`."""
        return self._allowed(path, os.path.normpath)

    def _allowed(self, path: str, resolve: Callable[[str], str]) -> str:
        if not path.startswith("/") or "\0" in path:
            raise RefusalError("invalid_request", "The directory of an app must be an absolute path.")
        real = resolve(path)
        if not _is_single_line_utf8(path) or not _is_single_line_utf8(real):
            raise RefusalError(
                "invalid_request", f"The directory {path!a} has a line break in it, or is not UTF-8: rename it."
            )
        roots = self.roots()
        if not is_below(real, roots):
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
    write_atomic(file, f"{_HEADER}allowed_roots = [\n{lines}]\n".encode(), mode=0o644)


def _is_single_line_utf8(path: str) -> bool:
    """Whether a path fits on one of Compose's lines, and into gRPC's (UTF-8) strings."""
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
