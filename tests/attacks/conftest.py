"""Fixtures for attacks through an app's directory: a real agent, and a user behind a real sshd."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from lone_agent import Desk, LoneAgent
from moorage_common.clock import SystemClock
from moorage_controller.hosts.pools import AgentChannels
from moorage_controller.pki.identity import ControllerIdentity
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from real_transports import Way
from running_stack import IMAGE
from transport_rigs import AgentRig, SshDesk, SshRig, remove_ssh_apps


@pytest.fixture(scope="session")
def lone_agent(
    engine: PrivateEngine, sample_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoneAgent]:
    """Return a running agent."""
    assert sample_image == IMAGE
    desk = Desk().start()
    agent = LoneAgent(tmp_path_factory.mktemp("agent"), engine, desk).start()
    yield agent
    agent.clear()
    agent.process.terminate()
    desk.stop()


@pytest.fixture(scope="session")
def lone_sshd(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[PrivateSshd]:
    """Return an sshd with the user `op`."""
    assert sample_image == IMAGE
    with PrivateSshd(short_folder / "attacked", engine, [LabUser("op")]) as running:
        yield running
        remove_ssh_apps(running, engine)


@pytest.fixture
async def by_agent(lone_agent: LoneAgent) -> AsyncIterator[Way]:
    """Return the transport through the agent."""
    channels = AgentChannels(ControllerIdentity(lone_agent.desk.authority, SystemClock()).current)
    pid = lone_agent.process.process.identity.id
    yield Way(AgentRig(lone_agent, channels).transport, lone_agent.apps, lone_agent.engine, pid)
    await channels.close()
    lone_agent.clear()


@pytest.fixture
async def by_ssh(lone_sshd: PrivateSshd, engine: PrivateEngine) -> AsyncIterator[Way]:
    """Return the transport over SSH."""
    desk = SshDesk(lone_sshd)
    yield Way(SshRig(desk, engine).transport, lone_sshd.apps, engine, lone_sshd.process.identity.id)
    await desk.pool.close()
    remove_ssh_apps(lone_sshd, engine)


@pytest.fixture(params=["agent", "ssh"])
def way(request: pytest.FixtureRequest) -> Way:
    """Return each real transport in turn."""
    found: Way = request.getfixturevalue(f"by_{request.param}")
    return found
