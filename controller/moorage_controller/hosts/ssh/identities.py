"""Which app a path is on a host without an agent; known without asking Compose while its files stay the same."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from posixpath import dirname, join, normpath

import structlog
from moorage_common.app_identity import (
    COMPOSE_FILES,
    DIRECTORY_HANGS,
    OVERRIDE_FILES,
    UNREADABLE,
    AppIdentity,
    Reading,
    directory_hangs,
    no_directory,
    nonsense,
    not_quotable,
    read_config,
    refused,
    unreadable,
)
from moorage_common.compose import clean_environment
from moorage_common.compose_files import Walked, walk_resolved
from moorage_common.compose_output import error_sentence
from moorage_common.compose_rules import Rules, is_below
from moorage_common.journal_types import Refused
from moorage_common.states import Project
from moorage_common.untrusted import LIMITS

from moorage_controller.hosts.ssh.app_files import check_files, rules_of, run_walk
from moorage_controller.hosts.ssh.compose import HostCompose
from moorage_controller.hosts.ssh.directories import hanging
from moorage_controller.hosts.ssh.link import Link
from moorage_controller.hosts.ssh.shell import quote
from moorage_controller.hosts.transport import ContactLostError, HostApp, HostRefusedError

log = structlog.get_logger(__name__)

_READ_SECONDS = 65
_KEEP_SECONDS = 600.0
_KEEP_PROBLEM_SECONDS = 60.0
"""What mends it need not be one of the files that were looked at."""
_PATIENCE_SECONDS = 5.0
_AT_ONCE = 2
"""Processes of Compose are heavy: a host with a hundred apps must not start a hundred."""


@dataclass(frozen=True, slots=True)
class _Known:
    reading: Reading
    policy: str
    stamp: tuple[str, ...]
    until: float


class Identities:
    """Resolves paths to apps on one host; kept from one connection to the next."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._seen: dict[str, Project] = {}
        """By real directory, the last project that was read there, whatever became of its files."""
        self._last: dict[str, Reading] = {}
        self._reading: dict[str, asyncio.Task[Reading]] = {}
        self._said: set[str] = set()
        """The directories of which it is logged already that they can't be made sense of."""
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, link: Link, compose: HostCompose, app: HostApp) -> AppIdentity:
        """Ask Compose now. Raises ContactLostError, HostRefusedError for a path that can't be one, or that hangs."""
        link.directories.forget()
        real = (await link.directories.real_paths([app.cd_path]))[app.cd_path]
        check_path(real)
        if link.directories.hangs(app.cd_path):
            raise hanging(app.cd_path)
        reading = await self._read_or_refuse(link, compose, real)
        return reading.identity(app.cd_path, real, app.last_project)

    async def for_stop(self, link: Link, app: HostApp) -> AppIdentity:
        """Return what is known of an app without reading anything in its folder, nor asking Compose.

        That is its real directory, as it was last where it hangs, and the project it was last read as, besides the one
        that the app names. Raises
        ContactLostError, HostRefusedError for a path that can't be one.
        """
        link.directories.forget()
        real = (await link.directories.real_paths([app.cd_path]))[app.cd_path]
        check_path(real)
        return AppIdentity(app.cd_path, real, self._seen.get(real), app.last_project)

    @staticmethod
    async def recheck(link: Link, identity: AppIdentity) -> Refused | None:
        """Look through an app's files once more, right before Compose works with them. Raises as `ask`."""
        walked = await check_files(link, identity.real_directory, await rules_of(link))
        return walked.refusal

    async def current(self, link: Link, compose: HostCompose, apps: Sequence[HostApp]) -> list[AppIdentity]:
        """Return what apps are, in their order; Compose is asked only where its files changed since it was asked."""
        directories = link.directories
        directories.forget()
        real = await directories.real_paths([app.cd_path for app in apps])
        known = {path: self._known[path] for path in real.values() if path in self._known}
        asked = {path: entry.reading.files for path, entry in known.items() if not directories.hangs(path)}
        stamps = await directories.stamps(asked)
        hung = {real[cd_path] for cd_path in real if directories.hangs(cd_path)}
        now = time.monotonic()
        same = {path: entry for path, entry in known.items() if entry.policy == link.survey.policy}
        fresh = {path for path, entry in same.items() if stamps.get(path) == entry.stamp and now < entry.until}
        stale = [path for path in dict.fromkeys(real.values()) if path not in fresh | hung]
        read = await asyncio.gather(*(self._read_soon(link, compose, path) for path in stale))
        readings = {path: known[path].reading for path in fresh} | dict(zip(stale, read, strict=True))
        readings |= {path: Reading(self._seen.get(path), (), DIRECTORY_HANGS, directory_hangs(path)) for path in hung}
        return [readings[real[a.cd_path]].identity(a.cd_path, real[a.cd_path], a.last_project) for a in apps]

    async def _read_soon(self, link: Link, compose: HostCompose, real: str) -> Reading:
        """Read one directory, or return what it was last read as where that takes long: the others don't wait."""
        reading = self._reading.get(real)
        if reading is None:
            reading = self._reading[real] = asyncio.create_task(self._read_in_turn(link, compose, real))
            reading.add_done_callback(lambda done: self._forget(real, done))
        done, _ = await asyncio.wait({reading}, timeout=_PATIENCE_SECONDS)
        return await reading if done else self._last.get(real, Reading(None, ()))

    async def _read_in_turn(self, link: Link, compose: HostCompose, real: str) -> Reading:
        async with self._turns:
            return await self._read_or_refuse(link, compose, real)

    def _forget(self, real: str, reading: asyncio.Task[Reading]) -> None:
        self._reading.pop(real, None)
        if not reading.cancelled():
            reading.exception()  # of a connection that was lost: whoever uses it hears of that

    async def _read_or_refuse(self, link: Link, compose: HostCompose, real: str) -> Reading:
        """Read one directory; whatever goes wrong with it is no other's trouble. Raises ContactLostError."""
        failure: Exception | None = None
        try:
            check_path(real)
            reading = await self._read(link, compose, real)
        except ContactLostError:
            raise
        except HostRefusedError as error:
            reading = Reading(None, (), error.code, error.sentence)
        except Exception as error:  # noqa: BLE001 - logged below, and told as this app's problem
            reading, failure = nonsense(real, ()), error
        self._last[real] = reading
        if reading.problem_code != UNREADABLE:
            self._said.discard(real)
        elif real not in self._said:
            self._said.add(real)
            log.warning(UNREADABLE, directory=real, exc_info=failure)
        return reading

    async def _read(self, link: Link, compose: HostCompose, real: str) -> Reading:
        """Ask Compose what the project is called, and where its containers will say they come from."""
        files = self._known[real].reading.files if real in self._known else ()
        before = await _stamp(link, real, files)
        reading = await _read(link, compose, real)
        stamp = await _stamp(link, real, reading.files)
        if reading.project is not None:
            self._seen[real] = reading.project
        if reading.files == files and before != stamp:
            self._known.pop(real, None)  # changed while it was read: not to be relied on
        else:
            keep = _KEEP_PROBLEM_SECONDS if reading.problem_code else _KEEP_SECONDS
            self._known[real] = _Known(reading, link.survey.policy, stamp, time.monotonic() + keep)
        return reading


def check_path(path: str) -> None:
    """Raise HostRefusedError for what can't be an app's directory, or can't be shown on one line."""
    try:
        path.encode()
        speakable = not {"\n", "\r", "\0"} & set(path)
    except UnicodeEncodeError:
        speakable = False
    if not speakable:
        raise HostRefusedError(
            "invalid_request", f"The directory {path!a} has a line break in it, or is not UTF-8: rename it."
        )
    if not path.startswith("/"):
        raise HostRefusedError("invalid_request", "The directory of an app must be an absolute path.")


async def _stamp(link: Link, real: str, files: Sequence[str]) -> tuple[str, ...]:
    """Return the stamp of an app's files. Raises HostRefusedError where one of them hangs."""
    stamp = (await link.directories.stamps({real: files})).get(real)
    if stamp is None:
        raise hanging(real)
    return stamp


async def _read(link: Link, compose: HostCompose, real: str) -> Reading:
    """Ask Compose, where the host's policy allows what the app's files make it do."""
    try:
        rules = await rules_of(link)
    except HostRefusedError as error:
        return Reading(None, (), error.code, error.sentence)
    if not is_below(real, rules.roots):
        sentence = (
            f"{real} is outside the directories that the host's policy allows ({', '.join(rules.roots)}): "
            "an admin of the host can add it there."
        )
        return Reading(None, (), "path_not_allowed", sentence)
    walked = await check_files(link, real, rules)
    if walked.refusal is not None:
        return refused(walked.refusal, walked.files)
    return await _ask(link, compose, real, rules, walked)


async def _ask(link: Link, compose: HostCompose, real: str, rules: Rules, walked: Walked) -> Reading:
    """Ask Compose what it makes of files that were looked through."""
    environment = clean_environment(real, link.survey.environment)
    argv = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *compose.argv]
    call = f"mo_read_app {quote(real, ' '.join(COMPOSE_FILES), *argv)}"
    told = await link.directories.ask(real, call, seconds=_READ_SECONDS, limit=LIMITS.script_config, aside=True)
    match told:  # as mo_read_app prints it
        case ["file" | "nothing" as kind]:
            return no_directory(real, is_file=kind == "file")
        case ["directory", config_code, config, variables_code, variables, complaint, above]:
            pass
        case _:
            raise ContactLostError("The host's shell broke off while it asked Compose.")
    directory, places = await _places(link, real, variables, above)
    files = tuple(dict.fromkeys([*places, *walked.files]))
    if config_code != "0" or variables_code != "0":
        again = await check_files(link, real, rules)
        if not walked.quotable or not again.quotable or again.refusal is not None:
            return not_quotable(real, files)
        return unreadable(error_sentence(complaint) or "nothing", files)
    resolved = await run_walk(link, real, walk_resolved(config, directory, rules))
    if resolved.refusal is not None:
        return refused(resolved.refusal, files)
    return read_config(config, directory, files)


async def _places(link: Link, real: str, environment: str, above: str) -> tuple[str, Sequence[str]]:
    """Return what Compose labels containers with (the directory of its first file, links resolved), and its files."""
    variables = dict(line.partition("=")[::2] for line in environment.splitlines())
    # Not the directory itself: it changes whenever the app writes a file beside its compose file.
    settings = [join(real, ".env")]
    named = variables.get("COMPOSE_FILE")
    if named:
        files = [join(real, file) for file in named.split(variables.get("COMPOSE_PATH_SEPARATOR") or ":")]
        parent = dirname(files[0]) or "/"
        return (await link.directories.real_paths([parent]))[parent], [*settings, *files]
    # As Compose does: the nearest directory upwards with a file of one of the known names.
    directory = real
    while True:
        settings += [join(directory, name) for name in (".env", *COMPOSE_FILES, *OVERRIDE_FILES)]
        if directory in {above, "/"}:
            break
        directory = dirname(normpath(directory))
    return above or real, settings
