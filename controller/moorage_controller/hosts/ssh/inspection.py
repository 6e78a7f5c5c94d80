"""Inspection of a host without an agent: an app's containers, the Compose projects, and logs."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.containers import by_project
from moorage_common.docker.engine_http import EngineProblemError
from moorage_common.docker.logs import LogLine, Logs, LogsWanted, TooManyLogsError, UnknownServiceError
from moorage_common.docker.states import ContainerState

from moorage_controller.hosts import cleaning
from moorage_controller.hosts.ssh import watch as watches
from moorage_controller.hosts.ssh.session.site import Site
from moorage_controller.hosts.transport import AppObservation, HostApp, HostProject, HostRefusedError


async def observe(site: Site, app: HostApp) -> AppObservation:
    """Observe an app now. Raises HostRefusedError, ContactLostError."""
    try:
        return await watches.observe(site.link, await _identity(site, app))
    except EngineProblemError as error:
        raise HostRefusedError("engine_unreachable", str(error)) from None


async def projects(site: Site) -> Sequence[HostProject]:
    """List the existing Compose projects. Raises HostRefusedError, ContactLostError."""
    try:
        containers = await site.link.engine.containers()
    except EngineProblemError as error:
        raise HostRefusedError("engine_unreachable", str(error)) from None
    found = by_project(containers.values()).items()
    told = (HostProject(p, c.states, tuple(c.config_files), c.environment_file) for p, c in found)
    return [project for each in told if (project := cleaning.host_project(each)) is not None]


async def logs(site: Site, app: HostApp, wanted: LogsWanted) -> AsyncGenerator[Sequence[LogLine], None]:
    """Yield batches of log lines of an app's containers. Raises ContactLostError, HostRefusedError."""
    identity = await _identity(site, app)

    async def list_containers() -> list[ContainerState]:
        found = await site.link.engine.containers()
        site.count_log_streams()  # the kind of connection to the Engine is known only now
        return [container.state for container in found.values() if identity.owns(container)]

    reading = Logs(site.link.engine.dial, list_containers, list_containers, wanted, site.logs, site.link.sessions.pace)
    try:
        async with aclosing(reading.lines()) as batches:
            async for batch in batches:
                yield [cleaning.log_line(line) for line in batch]
    except UnknownServiceError as error:
        raise HostRefusedError("service_not_found", str(error)) from None
    except TooManyLogsError as error:
        raise HostRefusedError("too_many_logs", str(error)) from None
    except EngineProblemError as error:
        raise HostRefusedError("engine_unreachable", str(error)) from None


async def _identity(site: Site, app: HostApp) -> AppIdentity:
    compose = await site.provide_compose()
    (identity,) = await site.identities.current(site.link, compose, [app])
    return identity
