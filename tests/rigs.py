"""Hosts for the contract of HostTransport: a fake one and a real agent's, with what tests do to them from beside."""

from pathlib import Path
from typing import Protocol
from uuid import uuid4

import docker
from fakes import FakeClock, FakeHost, FakeTransport
from lone_agent import LoneAgent
from moorage_controller.hosts.agent import AgentTransport
from moorage_controller.hosts.pools import AgentChannels
from moorage_controller.hosts.transport import HostTransport
from moorage_lab.network import free_port
from stack import IMAGE

QUICK = f"""\
services:
  web:
    image: {IMAGE}
    command: sleep 600
    init: true
"""
SLOW = f"""\
services:
  db:
    image: {IMAGE}
    command: sleep 600
    init: true
    healthcheck:
      test: ["CMD", "test", "-e", "/never"]
      interval: 1s
      retries: 1000
  web:
    image: {IMAGE}
    command: sleep 600
    init: true
    depends_on:
      db: {{condition: service_healthy}}
"""


class Rig(Protocol):
    """A host, the way to it, and what tests do to it from beside."""

    transport: HostTransport
    nowhere: HostTransport
    """The way to a host that isn't there."""

    def app(self) -> str:
        """Make an app with one service, `web`; return its directory."""

    def slow_app(self) -> str:
        """Make an app whose `up` doesn't end by itself."""

    async def kill_containers(self, cd_path: str) -> None:
        """Kill an app's containers."""


class FakeRig:
    """A host in memory."""

    def __init__(self) -> None:
        clock = FakeClock()
        self.host, lost = FakeHost(), FakeHost()
        lost.reachable = False
        self.transport: HostTransport = FakeTransport(self.host, clock)
        self.nowhere: HostTransport = FakeTransport(lost, clock)

    def app(self) -> str:
        """Make an app with one service, `web`; return its directory."""
        path = f"/srv/{uuid4()}"
        self.host.app(path).services = ("web",)
        return path

    def slow_app(self) -> str:
        """Make an app whose `up` doesn't end by itself."""
        self.host.hold()
        return self.app()

    async def kill_containers(self, cd_path: str) -> None:
        """Kill an app's containers."""
        self.host.set_running(cd_path, [])


class AgentRig:
    """A real agent."""

    def __init__(self, agent: LoneAgent, channels: AgentChannels) -> None:
        self._agent = agent
        address = agent.process.address
        self.transport: HostTransport = AgentTransport(channels.get(address, agent.name), address)
        absent = f"127.0.0.1:{free_port()}"
        self.nowhere: HostTransport = AgentTransport(channels.get(absent, agent.name), absent)

    def app(self) -> str:
        """Make an app with one service, `web`; return its directory."""
        return str(self._agent.app(str(uuid4()), QUICK))

    def slow_app(self) -> str:
        """Make an app whose `up` doesn't end by itself."""
        return str(self._agent.app(str(uuid4()), SLOW))

    async def kill_containers(self, cd_path: str) -> None:
        """Kill an app's containers."""
        client = docker.APIClient(base_url=self._agent.engine.host, version="auto")
        try:
            for name in self._agent.containers(Path(cd_path)):
                client.kill(name)
        finally:
            client.close()
