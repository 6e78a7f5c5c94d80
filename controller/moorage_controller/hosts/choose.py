"""Choice of the transport to a server: its agent first; SSH if there is no agent, or if it doesn't answer.

Over SSH a server's operations use its agent's own journal. Operations that the agent already has are found there, so
none runs twice. If that journal can't be used, SSH doesn't replace the agent.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from uuid import UUID

from moorage_common.docker.logs import LogLine, LogsWanted

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.agent import AgentTransport
from moorage_controller.hosts.pools import AgentChannels
from moorage_controller.hosts.ssh.session.connection import SshTarget, show_key
from moorage_controller.hosts.ssh.session.pool import SshPool
from moorage_controller.hosts.ssh.transport import SshTransport
from moorage_controller.hosts.transport import (
    AppObservation,
    CancelOutcome,
    ContactLostError,
    Deadline,
    End,
    HostAddress,
    HostApp,
    HostInfo,
    HostProject,
    HostTransport,
    Order,
    Output,
    Snapshot,
    WatchItem,
)

DEFAULT_USER = "root"
_AGENT_ASKED_EVERY_SECONDS = 3.0
"""Interval of agent probes while SSH is used.

A probe fails immediately while the channel waits to reconnect (3 s at most), so the interval is short.
"""


class TransportFactory:
    """Chooses the transport to a server."""

    def __init__(self, channels: AgentChannels, pool: SshPool) -> None:
        self._channels = channels
        self._pool = pool

    def transport(self, server: HostAddress) -> HostTransport:
        """Return the transport. Raises HostUnreachableError if there is none."""
        agent = ssh = None
        if server.api_endpoint and server.agent_name:
            channel = self._channels.get(server.api_endpoint, server.agent_name)
            agent = AgentTransport(channel, server.api_endpoint)
        # The folder of the agent's journal is unknown until the agent has answered once.
        if server.encrypted_credentials and (agent is None or server.agent_journal):
            ssh = SshTransport(self._pool.host(ssh_target(server)))
        if agent is not None and ssh is not None:
            return FallbackTransport(agent, ssh)
        way = agent or ssh
        if way is None:
            raise HostUnreachableError(
                "This server has neither an agent nor an SSH key: make a join token for it and run "
                "`moorage-agent enroll` on the host, or give it sshPrivateKey.",
                "no_agent",
            )
        return way

    async def host_key(self, server: HostAddress) -> str:
        """Return the SSH host key that the host presents now, regardless of pinning. Raises HostUnreachableError."""
        return await show_key(ssh_target(server))


class FallbackTransport:
    """Transport to a host with an agent and SSH. The first call chooses one of them for all later calls."""

    def __init__(self, agent: HostTransport, ssh: HostTransport) -> None:
        self._agent = agent
        self._ssh = ssh
        self._chosen: HostTransport | None = None
        self._why = ""

    @property
    def name(self) -> str:
        """`agent`, or `ssh` after the fallback."""
        return (self._chosen or self._agent).name

    async def connect(self) -> None:
        """Connect to the host by its agent or by SSH. Raises HostUnreachableError."""
        await self._choose()

    async def info(self) -> HostInfo:
        """Fetch the host's facts, with the reason for a fallback to SSH. Raises HostUnreachableError."""
        return self._explained(await (await self._choose()).info())

    async def start(self, order: Order) -> None:
        """Start, or attach to, an operation. Raises ContactLostError, HostRefusedError."""
        await (await self._again()).start(order)

    async def follow(self, operation_id: UUID, after: int) -> AsyncGenerator[Output | End, None]:
        """Yield output from an offset on, then the end. Both transports use the same journal."""
        async for item in (await self._again()).follow(operation_id, after):
            yield item

    async def cancel(self, operation_id: UUID, by: str) -> CancelOutcome:
        """Stop a start's command, or prevent its start. Raises ContactLostError, HostRefusedError."""
        return await (await self._again()).cancel(operation_id, by)

    async def watch(self, apps: Sequence[HostApp]) -> AsyncGenerator[WatchItem, None]:
        """Yield a snapshot, then every change; over SSH only until the agent answers again."""
        way = await self._choose()
        async with aclosing(self._until_agent(apps) if way is self._ssh else way.watch(apps)) as items:
            async for item in items:
                match item:
                    case HostInfo():
                        yield self._explained(item)
                    case Snapshot(host):
                        yield replace(item, host=self._explained(host))
                    case _:
                        yield item

    async def observe(self, app: HostApp) -> AppObservation:
        """Observe an app now. Raises HostUnreachableError."""
        return await (await self._choose()).observe(app)

    async def projects(self) -> Sequence[HostProject]:
        """List the existing Compose projects. Raises HostUnreachableError."""
        return await (await self._choose()).projects()

    async def logs(self, app: HostApp, wanted: LogsWanted) -> AsyncGenerator[Sequence[LogLine], None]:
        """Yield batches of log lines of an app's containers."""
        async with aclosing((await self._choose()).logs(app, wanted)) as batches:
            async for batch in batches:
                yield batch

    async def set_deadline(self, app: HostApp, deadline: Deadline) -> None:
        """Send the deadline to the agent only, never over SSH. Raises HostUnreachableError.

        An agent that doesn't answer may still run and enforce the deadlines it has.
        """
        await self._agent.set_deadline(app, deadline)

    async def _until_agent(self, apps: Sequence[HostApp]) -> AsyncGenerator[WatchItem, None]:
        items = self._ssh.watch(apps)
        back = asyncio.create_task(self._agent_is_back())
        item = asyncio.ensure_future(anext(items))
        try:
            while True:
                await asyncio.wait({item, back}, return_when=asyncio.FIRST_COMPLETED)
                if back.done() and not item.done():
                    return
                yield await item
                item = asyncio.ensure_future(anext(items))
        finally:
            for task in (item, back):
                task.cancel()
            await asyncio.gather(item, back, return_exceptions=True)
            await items.aclose()

    async def _agent_is_back(self) -> None:
        while True:
            await asyncio.sleep(_AGENT_ASKED_EVERY_SECONDS)
            with suppress(HostUnreachableError):
                await self._agent.connect()
                return

    async def _again(self) -> HostTransport:
        try:
            return await self._choose()
        except HostUnreachableError as error:
            # The operation may have been sent earlier, so an unreachable host proves nothing about it.
            raise ContactLostError(error.sentence, error.code) from None

    async def _choose(self) -> HostTransport:
        if self._chosen is not None:
            return self._chosen
        try:
            await self._agent.connect()
        except HostUnreachableError as error:
            await self._choose_ssh(error)
        else:
            self._chosen = self._agent
        return self._chosen or self._agent

    async def _choose_ssh(self, error: HostUnreachableError) -> None:
        try:
            await self._ssh.connect()
        except HostUnreachableError as other:
            raise HostUnreachableError(f"{error.sentence}; and by SSH: {other.sentence}", error.code) from None
        self._chosen, self._why = self._ssh, error.sentence

    def _explained(self, info: HostInfo) -> HostInfo:
        return replace(info, fallback=self._why)


def ssh_target(server: HostAddress) -> SshTarget:
    """Return the SSH address, user and pinned key of a server."""
    return SshTarget(
        server_id=server.id,
        address=server.address,
        port=server.ssh_port,
        username=server.ssh_user or DEFAULT_USER,
        host_key=server.host_key or "",
        journal=server.agent_journal or "",
        credentials=server.encrypted_credentials or "",
    )
