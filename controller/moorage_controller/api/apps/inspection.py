"""Inspection of hosts over HTTP: an app's containers, its logs, and projects without an app."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, aclosing
from functools import partial
from posixpath import relpath

from moorage_common.compose.command import is_own_file
from moorage_common.docker.app_identity import COMPOSE_FILES, OVERRIDE_FILES
from moorage_common.docker.logs import LogLine, LogsWanted
from moorage_common.docker.states import ContainerState, observed_status
from pydantic import ValidationError

from moorage_controller.api.apps.schemas import ContainerOut, ProjectFoundOut
from moorage_controller.api.convert import millis
from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Raw, Reply, ok, stream
from moorage_controller.api.http.sse import Event, Events, while_connected
from moorage_controller.auth.stream_shares import Kind
from moorage_controller.hosts.transport import HostProject
from moorage_controller.services.fleet.inspection import Lines, ShownContainer, engine_time

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
_MOST_LINES = 10_000


async def list_services(call: Call) -> Reply:
    """GET /api/apps/{id}/services: list the app's containers, read from the host now."""
    return ok([_container_out(c) for c in await call.services.inspection.services(call.id())])


async def discover_projects(call: Call) -> Reply:
    """GET /api/servers/{id}/discover: list Compose projects on the host without an app."""
    found = (_project_out(project) for project in await call.services.inspection.discover(call.id()))
    return ok([shown for shown in found if shown is not None])


async def show_logs(call: Call) -> Reply:
    """GET /api/apps/{id}/logs: return logs of the app's containers, as text, or as events with `follow=true`.

    A line is `CONTAINER | TEXT`, with `timestamps` `CONTAINER | TIME TEXT`. The `id` of an event is its line's time: as
    Last-Event-ID it resumes an interrupted stream after that line.
    """
    ago, tail = call.query_ago("since"), call.query_number("tail", 200, 0, _MOST_LINES)
    follow, timestamps = call.query_flag("follow"), call.query_flag("timestamps")
    after = _since(call) if ago is None else ""
    if follow and _TIME.fullmatch(call.last_event_id):
        after, tail, ago = call.last_event_id, -1, None
    wanted = LogsWanted(call.query_word("service") or "", tail, after, follow)
    show = partial(_text, timestamps=timestamps)
    with ExitStack() as held:
        held.enter_context(call.services.stream_shares.of_user(Kind.LOGS, call.principal.user_id))
        lines = call.services.inspection.logs(call.id(), wanted, held, ago)
        if follow:
            return stream(_events(await lines, show), held)
        return Reply(Raw(await while_connected(call.request, _whole(lines, show)), "text/plain"))


def _since(call: Call) -> str:
    """Return `since` in the Engine's time format; a time already in that format keeps its nanoseconds."""
    given = call.query_time("since")
    text = call.request.query.get("since", "")
    return text if given is None or _TIME.fullmatch(text) else engine_time(given)


async def _whole(asked: Awaitable[Lines], show: Callable[[LogLine], str]) -> bytes:
    text = bytearray()
    async with aclosing(await asked) as lines:
        async for batch in lines:
            text += "".join(f"{show(line)}\n" for line in batch).encode()
            await asyncio.sleep(0)
    return bytes(text)


async def _events(lines: Lines, show: Callable[[LogLine], str]) -> Events:
    async with aclosing(lines):
        async for batch in lines:
            yield [Event(show(line), id=line.time or None) for line in batch]


def _text(line: LogLine, *, timestamps: bool) -> str:
    text = f"{line.time} {line.text}" if timestamps and line.time else line.text
    return f"{line.container} | {text}" if line.container else text


def _container_out(shown: ShownContainer) -> ContainerOut:
    container = shown.state
    since = container.started_at if container.alive else container.finished_at
    return ContainerOut(
        id=container.id,
        name=container.name,
        service=container.service,
        state=container.state,
        health=container.health or None,
        exit_code=None if container.alive or container.state == "created" else container.exit_code,
        image=container.image,
        ports=list(container.ports),
        one_off=container.one_off,
        orphan=shown.orphan,
        restarts=container.restarts,
        since=millis(since),
    )


def _own_files(found: HostProject) -> list[str]:
    """Return a project's files as composeFiles of an app.

    Empty if Compose finds them by default, or if they are outside of the directory.
    """
    directory = found.project.directory
    relative = [relpath(file, directory) for file in found.config_files]
    usual = {*COMPOSE_FILES, *OVERRIDE_FILES}
    return relative if all(map(is_own_file, relative)) and not usual.issuperset(relative) else []


def _project_out(found: HostProject) -> ProjectFoundOut | None:
    """Convert a project; None if its directory is not valid for an app."""
    containers: Sequence[ContainerState] = found.containers
    try:
        return ProjectFoundOut(
            name=found.project.name,
            cd_path=found.project.directory,
            config_files=list(found.config_files),
            environment_file=found.environment_file or None,
            compose_files=_own_files(found),
            status=observed_status(containers).value,
            services=sorted({c.service for c in containers if c.service}),
        )
    except ValidationError:
        return None
