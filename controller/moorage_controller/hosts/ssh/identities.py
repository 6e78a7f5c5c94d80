"""Identities of apps on a host without an agent: from Compose, cached while the app's files stay unchanged."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from posixpath import dirname, join, normpath

import structlog
from moorage_common.compose.command import clean_environment, with_files
from moorage_common.compose.files import Walked, walk_resolved
from moorage_common.compose.output import error_sentence
from moorage_common.compose.rules import Rules, is_below
from moorage_common.docker.app_identity import (
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
from moorage_common.docker.states import Project
from moorage_common.journal.types import Refused
from moorage_common.untrusted import LIMITS

from moorage_controller.hosts.ssh.app_files import check_files, rules_of, run_walk
from moorage_controller.hosts.ssh.compose import HostCompose
from moorage_controller.hosts.ssh.directories import hanging
from moorage_controller.hosts.ssh.session.host_session import HostSession
from moorage_controller.hosts.ssh.session.shell import quote
from moorage_controller.hosts.transport import ContactLostError, HostApp, HostRefusedError

log = structlog.get_logger(__name__)

_READ_SECONDS = 65
_KEEP_SECONDS = 600.0
_KEEP_PROBLEM_SECONDS = 60.0
"""The fix of a problem may be outside of the stamped files."""
_PATIENCE_SECONDS = 5.0
_MAX_CONCURRENT = 2
"""Limit of concurrent Compose processes on a host, which are heavy."""


_Place = tuple[str, tuple[str, ...]]
"""A real directory, and the app's explicit compose files in it."""


@dataclass(frozen=True, slots=True)
class _Known:
    reading: Reading
    policy: str
    stamp: tuple[str, ...]
    until: float


class Identities:
    """Resolves directories to app identities on one host; reused by later connections."""

    def __init__(self) -> None:
        self._known: dict[_Place, _Known] = {}
        self._seen: dict[_Place, Project] = {}
        """The last project read in each place, even if its files have changed or are gone."""
        self._last: dict[_Place, Reading] = {}
        self._reading: dict[_Place, asyncio.Task[Reading]] = {}
        self._said: set[_Place] = set()
        """The places whose unreadable projects are already logged."""
        self._turns = asyncio.Semaphore(_MAX_CONCURRENT)

    async def ask(self, link: HostSession, compose: HostCompose, app: HostApp) -> AppIdentity:
        """Read an app's identity from Compose. Raises ContactLostError, HostRefusedError (invalid or hanging path)."""
        link.directories.forget()
        real = (await link.directories.real_paths([app.cd_path]))[app.cd_path]
        check_path(real)
        if link.directories.hangs(app.cd_path):
            raise hanging(app.cd_path)
        return _identity(app, real, await self._read_or_refuse(link, compose, (real, app.compose_files)))

    async def for_stop(self, link: HostSession, app: HostApp) -> AppIdentity:
        """Return an app's identity without reading its folder and without Compose.

        It consists of the real directory (the last known one if the path hangs), the project that was last read there,
        and the app's own last project. Raises ContactLostError, HostRefusedError (invalid path).
        """
        link.directories.forget()
        real = (await link.directories.real_paths([app.cd_path]))[app.cd_path]
        check_path(real)
        return AppIdentity(app.cd_path, real, self._seen.get((real, app.compose_files)), app.last_project)

    @staticmethod
    async def recheck(link: HostSession, identity: AppIdentity) -> Refused | None:
        """Check an app's files again, immediately before Compose reads them. Raises like `ask`."""
        rules = await rules_of(link)
        walked = await check_files(link, identity.real_directory, rules, identity.compose_files)
        return walked.refusal

    async def current(self, link: HostSession, compose: HostCompose, apps: Sequence[HostApp]) -> list[AppIdentity]:
        """Return the identities of apps, in their order; Compose runs only for apps whose files have changed."""
        directories = link.directories
        directories.forget()
        real = await directories.real_paths([app.cd_path for app in apps])
        places = [(real[app.cd_path], app.compose_files) for app in apps]
        known = {place: self._known[place] for place in places if place in self._known}
        asked = {place: entry.reading.files for place, entry in known.items() if not directories.hangs(place[0])}
        stamps = await _stamps(link, asked)
        hung = {place for app, place in zip(apps, places, strict=True) if directories.hangs(app.cd_path)}
        now = time.monotonic()
        same = {place: entry for place, entry in known.items() if entry.policy == link.survey.policy}
        fresh = {place for place, entry in same.items() if stamps.get(place) == entry.stamp and now < entry.until}
        stale = [place for place in dict.fromkeys(places) if place not in fresh | hung]
        read = await asyncio.gather(*(self._read_soon(link, compose, place) for place in stale))
        readings = {place: known[place].reading for place in fresh} | dict(zip(stale, read, strict=True))
        for place in hung:
            readings[place] = Reading(self._seen.get(place), (), DIRECTORY_HANGS, directory_hangs(place[0]))
        return [_identity(app, place[0], readings[place]) for app, place in zip(apps, places, strict=True)]

    async def _read_soon(self, link: HostSession, compose: HostCompose, place: _Place) -> Reading:
        """Read one directory, or return its last reading if that takes long, so that the others don't wait."""
        reading = self._reading.get(place)
        if reading is None:
            reading = self._reading[place] = asyncio.create_task(self._read_in_turn(link, compose, place))
            reading.add_done_callback(lambda done: self._forget(place, done))
        done, _ = await asyncio.wait({reading}, timeout=_PATIENCE_SECONDS)
        return await reading if done else self._last.get(place, Reading(None, ()))

    async def _read_in_turn(self, link: HostSession, compose: HostCompose, place: _Place) -> Reading:
        async with self._turns:
            return await self._read_or_refuse(link, compose, place)

    def _forget(self, place: _Place, reading: asyncio.Task[Reading]) -> None:
        self._reading.pop(place, None)
        if not reading.cancelled():
            reading.exception()  # a lost connection is reported to its users anyway

    async def _read_or_refuse(self, link: HostSession, compose: HostCompose, place: _Place) -> Reading:
        """Read one directory; its failures don't affect others. Raises ContactLostError."""
        failure: Exception | None = None
        try:
            check_path(place[0])
            reading = await self._read(link, compose, place)
        except ContactLostError:
            raise
        except HostRefusedError as error:
            reading = Reading(None, (), error.code, error.sentence)
        except Exception as error:  # noqa: BLE001 - logged below, and reported as this app's problem
            reading, failure = nonsense(place[0], ()), error
        self._last[place] = reading
        if reading.problem_code != UNREADABLE:
            self._said.discard(place)
        elif place not in self._said:
            self._said.add(place)
            log.warning(UNREADABLE, directory=place[0], exc_info=failure)
        return reading

    async def _read(self, link: HostSession, compose: HostCompose, place: _Place) -> Reading:
        """Read the project's name from Compose, and the directory that its containers will be labelled with."""
        files = self._known[place].reading.files if place in self._known else ()
        before = await _stamp(link, place[0], files)
        reading = await _read(link, compose, place)
        stamp = await _stamp(link, place[0], reading.files)
        if reading.project is not None:
            self._seen[place] = reading.project
        if reading.files == files and before != stamp:
            self._known.pop(place, None)  # changed during the read: don't cache it
        else:
            keep = _KEEP_PROBLEM_SECONDS if reading.problem_code else _KEEP_SECONDS
            self._known[place] = _Known(reading, link.survey.policy, stamp, time.monotonic() + keep)
        return reading


def check_path(path: str) -> None:
    """Raise HostRefusedError for a path that is no valid app directory, or not printable on one line."""
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


def _identity(app: HostApp, real: str, reading: Reading) -> AppIdentity:
    return reading.identity(app.cd_path, real, app.last_project, app.compose_files)


async def _stamps(link: HostSession, files: Mapping[_Place, Sequence[str]]) -> dict[_Place, tuple[str, ...]]:
    """Return the stamps of the files of places; places whose files hang are left out."""
    wanted: dict[str, list[str]] = {}
    for (real, _), several in files.items():
        wanted[real] = list(dict.fromkeys([*wanted.get(real, ()), *several]))
    told = await link.directories.stamps(wanted)
    stamps = {real: dict(zip(wanted[real], stamp, strict=True)) for real, stamp in told.items()}
    return {
        place: tuple(stamps[place[0]][file] for file in several)
        for place, several in files.items()
        if place[0] in stamps
    }


async def _stamp(link: HostSession, real: str, files: Sequence[str]) -> tuple[str, ...]:
    """Return the stamp of an app's files. Raises HostRefusedError if one of them hangs."""
    stamp = (await link.directories.stamps({real: files})).get(real)
    if stamp is None:
        raise hanging(real)
    return stamp


async def _read(link: HostSession, compose: HostCompose, place: _Place) -> Reading:
    """Read the project from Compose, if the host's policy allows the app's files."""
    real, compose_files = place
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
    walked = await check_files(link, real, rules, compose_files)
    if walked.refusal is not None:
        return refused(walked.refusal, walked.files)
    return await _ask(link, compose, place, rules, walked)


async def _ask(link: HostSession, compose: HostCompose, place: _Place, rules: Rules, walked: Walked) -> Reading:
    """Read the project from Compose; its files were checked before."""
    real, compose_files = place
    environment = clean_environment(real, link.survey.environment)
    settings = [f"{name}={value}" for name, value in environment.items()]
    argv = ["env", "-i", *settings, *with_files(compose.argv, compose_files)]
    call = f"mo_read_app {quote(real, ' '.join(COMPOSE_FILES), *argv)}"
    told = await link.directories.ask(real, call, seconds=_READ_SECONDS, limit=LIMITS.script_config, aside=True)
    match told:  # the output of mo_read_app
        case ["file" | "nothing" as kind]:
            return no_directory(real, is_file=kind == "file")
        case ["directory", config_code, config, variables_code, variables, complaint, above]:
            pass
        case _:
            raise ContactLostError("The host's shell broke off while it asked Compose.")
    directory, places = await _places(link, place, variables, above)
    files = tuple(dict.fromkeys([*places, *walked.files]))
    if config_code != "0" or variables_code != "0":
        again = await check_files(link, real, rules, compose_files)
        if not walked.quotable or not again.quotable or again.refusal is not None:
            return not_quotable(real, files)
        return unreadable(error_sentence(complaint) or "nothing", files)
    resolved = await run_walk(link, real, walk_resolved(config, directory, rules))
    if resolved.refusal is not None:
        return refused(resolved.refusal, files)
    return read_config(config, directory, files, walked.services, walked.config_files)


async def _places(link: HostSession, place: _Place, environment: str, above: str) -> tuple[str, Sequence[str]]:
    """Return the directory in Compose's container labels (of its first file, links resolved), and its files."""
    real, compose_files = place
    variables = dict(line.partition("=")[::2] for line in environment.splitlines())
    # Without the directory itself, which changes whenever the app writes a file beside its compose file.
    settings = [join(real, ".env")]
    listed = variables.get("COMPOSE_FILE")
    named = compose_files or (listed or "").split(variables.get("COMPOSE_PATH_SEPARATOR") or ":")
    if compose_files or listed:
        files = [join(real, file) for file in named]
        parent = dirname(files[0]) or "/"
        return (await link.directories.real_paths([parent]))[parent], [*settings, *files]
    # Like Compose: the nearest directory upwards with a file of one of the known names.
    directory = real
    while True:
        settings += [join(directory, name) for name in (".env", *COMPOSE_FILES, *OVERRIDE_FILES)]
        if directory in {above, "/"}:
            break
        directory = dirname(normpath(directory))
    return above or real, settings
