"""Fixtures for the agent's tests: one enrolled agent, shared by the folder, and its gRPC client."""

from collections.abc import AsyncIterator, Iterator

import pytest
from lone_agent import Caller, Desk, LoneAgent
from moorage_lab.programs.engine import PrivateEngine
from running_stack import IMAGE


@pytest.fixture(scope="session")
def desk() -> Iterator[Desk]:
    """Return the enrolment desk."""
    made = Desk().start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def shared_agent(
    engine: PrivateEngine, sample_image: str, desk: Desk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoneAgent]:
    """Return a running agent."""
    assert sample_image == IMAGE
    made = LoneAgent(tmp_path_factory.mktemp("agent"), engine, desk).start()
    yield made
    made.clear()
    made.process.terminate()


@pytest.fixture
def agent(shared_agent: LoneAgent) -> Iterator[LoneAgent]:
    """Return the running agent; remove its apps after the test."""
    assert shared_agent.process.process.alive
    yield shared_agent
    shared_agent.clear()


@pytest.fixture
async def caller(agent: LoneAgent) -> AsyncIterator[Caller]:
    """Call the agent as the controller does."""
    async with agent.called() as made:
        yield made
