"""Which way to a host: its agent where one is enrolled, else SSH.

An operation stays on the way it was begun on: the two may keep different journals, and what isn't in the one may run
in the other. So only an operation that was never sent may choose, and only a stop takes SSH where the agent doesn't
answer: a start would leave the agent's own deadline for the app behind, and be stopped by it.
"""

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.agent import AgentHosts
from moorage_controller.hosts.ssh.transport import SshHosts
from moorage_controller.hosts.transport import HostTransport, Way


class ChosenHosts:
    """Finds the way to a server."""

    def __init__(self, agents: AgentHosts, ssh: SshHosts) -> None:
        self._agents = agents
        self._ssh = ssh

    def transport(self, way: Way, used: str = "") -> HostTransport:
        """Return the way to take; `used` is the name of the one that an operation was begun on, if it was."""
        if used:
            return (self._ssh if used == "ssh" else self._agents).transport(way)
        if way.has_agent:
            return self._agents.transport(way)
        if way.has_ssh:
            return self._ssh.transport(way)
        raise HostUnreachableError(
            "This server has no agent yet, and no SSH user with a key or password: make a join token for it and run "
            "`moorage-agent enroll` on the host, or give it sshUser and sshPrivateKey.",
            "no_agent",
        )

    def other(self, way: Way) -> HostTransport | None:
        """Return the way for a stop whose agent doesn't answer, None where there is no other."""
        return self._ssh.transport(way) if way.has_agent and way.has_ssh else None

    async def shown_host_key(self, way: Way) -> str:
        """Ask a host for the SSH host key it shows now, without a login. Raises HostUnreachableError."""
        return await self._ssh.shown_host_key(way)
