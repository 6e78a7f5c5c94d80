"""File system queries on a host. A hung file system (NFS, FUSE, a failing disk) blocks only queries of its own paths.

On the host each query runs in the background, with a time limit on its answer. Its process may hang, immune even to
SIGKILL. As long as it lives, that path is not queried again.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from posixpath import normpath
from typing import Protocol

from moorage_common.docker.app_identity import DIRECTORY_HANGS, directory_hangs
from moorage_common.untrusted import LIMITS

from moorage_controller.hosts.ssh.session.shell import ScriptResult, quote
from moorage_controller.hosts.transport import ContactLostError, HostRefusedError

_PATHS_SECONDS = 2
_PATHS_A_SECOND = 20
"""Paths resolved per second, at least, on a busy host."""
_SLOW_SECONDS = 10.0
_WHOLE = "whole"
_MOST_HANGING = 10_000


class Quick(Protocol):
    """Runs a short script on the host."""

    def __call__(self, call: str, *, seconds: float = ..., limit: int = ...) -> Awaitable[ScriptResult]:
        """Return its result. Raises ContactLostError, HostRefusedError."""


class Slow(Protocol):
    """Runs a script in a session of its own."""

    def __call__(self, script: str, *, seconds: float, sent: bytes = ..., limit: int = ...) -> Awaitable[ScriptResult]:
        """Return its result. Raises ContactLostError."""


class Directories:
    """The directories of one host, over one connection. Every method raises ContactLostError, HostRefusedError."""

    def __init__(self, run_in_shell: Quick, run_in_session: Slow) -> None:
        self._quick = run_in_shell
        self._slow = run_in_session
        self._real: dict[str, str] = {}
        self._last: dict[str, str] = {}
        """All real paths resolved so far, by path."""
        self._turn = asyncio.Lock()
        self._hanging: dict[str, str] = {}
        """The hanging process on the host by path: its pid and start time."""

    def hangs(self, path: str) -> bool:
        """Whether the last query of a path is still unanswered."""
        return path in self._hanging

    def forget(self) -> None:
        """Resolve again from now on, because links may have changed."""
        self._real.clear()

    async def real_paths(self, paths: Sequence[str]) -> Mapping[str, str]:
        """Resolve symbolic links in paths, existing or not; cached until `forget`.

        A hanging path keeps its last real path, or stays unresolved.
        """
        known = {path: self._real[path] for path in paths if path in self._real}
        if len(known) < len(set(paths)):
            # Serialized: a path that the first call finds hanging is skipped by the next.
            async with self._turn:
                known |= await self._resolve([path for path in dict.fromkeys(paths) if path not in known])
        return {path: known.get(path) or self._last.get(path) or normpath(path) for path in paths}

    async def ask(
        self, path: str, call: str, *, seconds: int, limit: int = LIMITS.script, aside: bool = False
    ) -> list[str]:
        """Run a query about a path, and return its NUL-terminated texts.

        With `aside` it runs in a session of its own, for which it may have to wait. Raises HostRefusedError
        `directory_hangs` if the query takes longer than `seconds`.
        """
        script = f"mo_unless_hanging {quote(self._hanging.get(path, ''))} {seconds} {call}"
        run = self._slow if aside else self._quick
        ran = await run(script, seconds=seconds + _SLOW_SECONDS, limit=limit)
        fields = self._answer(path, ran.fields)
        if fields is None:
            raise hanging(path)
        return fields

    async def stamps(self, files: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
        """Return the stamps of each path's files, which change with a file; hanging paths are left out."""
        wanted = list(dict.fromkeys(file for several in files.values() for file in several))
        if not wanted:
            return dict.fromkeys(files, ())
        told = await self._run_within(_PATHS_SECONDS + len(wanted) // _PATHS_A_SECOND, f"mo_stamp {quote(*wanted)}")
        if len(told) == len(wanted) + 2:
            stamp = dict(zip(wanted, told[1:], strict=False))
            return {path: tuple(stamp[file] for file in several) for path, several in files.items()}
        stamps = {}
        for path, several in files.items():
            with suppress(HostRefusedError):
                stamps[path] = tuple(await self.ask(path, f"mo_stamp {quote(*several)}", seconds=_PATHS_SECONDS))
        return stamps

    async def _resolve(self, paths: Sequence[str]) -> dict[str, str]:
        """Return the real paths of the paths that don't hang."""
        asked = [path for path in paths if path not in self._hanging and path not in self._real]
        found = await self._resolve_in_turn(asked)
        left = [path for path in paths if path not in found and path not in self._real]
        if left:
            found |= await self._resolve_each(left)
        if len(self._last) > _MOST_HANGING:
            self._last.clear()
        self._last |= found
        self._real |= found
        return {path: self._real[path] for path in paths if path in self._real}

    async def _resolve_in_turn(self, paths: Sequence[str]) -> dict[str, str]:
        """Resolve paths one by one, up to the first that hangs; it and the later ones are left out."""
        if not paths:
            return {}
        told = await self._run_within(1 + len(paths) // _PATHS_A_SECOND, f"mo_real_all {quote(*paths)}")
        if len(told) == len(paths) + 2:
            return dict(zip(paths, told[1:], strict=False))
        if not told:
            raise ContactLostError("The host's shell broke off while it resolved links.")
        return dict(zip(paths[: len(told) - 1], told[1:], strict=False))

    async def _resolve_each(self, paths: Sequence[str]) -> dict[str, str]:
        """Resolve paths concurrently; those that hang are left out."""
        words = [word for path in paths for word in (self._hanging.get(path, ""), path)]
        script = f"mo_real_each {_PATHS_SECONDS} {quote(*words)}"
        told = (await self._quick(script)).fields
        answers = dict(field.partition(":")[::2] for field in told)
        found = {}
        for number, path in enumerate(paths):
            fields = self._answer(path, answers.get(str(number), "").split("\n"))
            if fields:
                found[path] = "\n".join(fields)
        return found

    async def _run_within(self, seconds: int, call: str) -> list[str]:
        """Run a query of several paths, and return its texts as far as it got within the time on the host."""
        return (await self._quick(f"mo_within {seconds} {call}", seconds=seconds + _SLOW_SECONDS)).fields

    def _answer(self, path: str, told: Sequence[str]) -> list[str] | None:
        """Return a query's answer; None if it hangs, and then record the hanging process."""
        if told[-1:] == [_WHOLE]:
            self._hanging.pop(path, None)
            return list(told[1:-1])
        if len(self._hanging) < _MOST_HANGING:
            self._hanging[path] = told[0] if told else ""
        return None


def hanging(path: str) -> HostRefusedError:
    """Return the error for a hanging directory."""
    return HostRefusedError(DIRECTORY_HANGS, directory_hangs(path))
