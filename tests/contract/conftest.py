"""The implementations of HostTransport: a fake host, a real agent, a real sshd; the last two on a real Engine."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from lone_agent import Desk, LoneAgent
from moorage_common.clock import SystemClock
from moorage_controller.hosts.pools import AgentChannels
from moorage_controller.pki.identity import ControllerIdentity
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from running_stack import IMAGE
from transport_rigs import AgentRig, FakeRig, Rig, SshDesk, SshRig, remove_ssh_apps


@pytest.fixture(scope="session")
def enrolled_agent(
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


@pytest.fixture
async def fake() -> AsyncIterator[Rig]:
    """Return a fake host."""
    rig = FakeRig()
    yield rig
    await rig.host.close()


@pytest.fixture
async def agent(enrolled_agent: LoneAgent) -> AsyncIterator[Rig]:
    """Return a real agent, called like the controller calls it."""
    channels = AgentChannels(ControllerIdentity(enrolled_agent.desk.authority, SystemClock()).current)
    yield AgentRig(enrolled_agent, channels)
    await channels.close()
    enrolled_agent.clear()


@pytest.fixture(scope="session")
def sshd(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[PrivateSshd]:
    """Return an sshd with the user `op`."""
    assert sample_image == IMAGE
    with PrivateSshd(short_folder / "ssh", engine, [LabUser("op")]) as running:
        yield running
        remove_ssh_apps(running, engine)


@pytest.fixture
async def ssh(sshd: PrivateSshd, engine: PrivateEngine) -> AsyncIterator[Rig]:
    """Return a host that is reached by SSH."""
    desk = SshDesk(sshd)
    yield SshRig(desk, engine)
    await desk.pool.close()


@pytest.fixture(params=["fake", "agent", "ssh"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """Return each host in turn."""
    found: Rig = request.getfixturevalue(request.param)
    return found
