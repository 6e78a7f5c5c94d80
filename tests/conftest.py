"""Fixtures for all tests: per session one real Docker Engine with a sample image, and one real PostgreSQL."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from controller_and_agent import Member
from hypothesis import settings
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.images import ensure_sample_image
from moorage_lab.programs.pids import Pid
from moorage_lab.programs.postgres import PrivatePostgres
from running_stack import IMAGE, Stack

_TESTS = Path(__file__).resolve().parent

# The same examples each time, for reproducible runs; `pytest --hypothesis-profile=search` searches further.
settings.register_profile("same", derandomize=True)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("same")

_PLACE = Path("/var/tmp")  # noqa: S108  # mkdtemp makes the folders; /tmp may be memory, and an Engine writes a lot
_PREFIX = "moorage-test-"
_OWNER = "session.pid"


_WAITING = ("fleet", "integration", "ssh", "attacks", "lab")
"""Folders whose tests mostly wait for real hosts; the others compute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mix the files that wait with those that compute, so that seldom both workers wait, or compute, at a time."""
    files = list(dict.fromkeys(item.path for item in items))
    waiting = [file for file in files if file.relative_to(_TESTS).parts[0] in _WAITING]
    computing = [file for file in files if file not in waiting]
    places = {file: (number + 0.5) / len(group) for group in (waiting, computing) for number, file in enumerate(group)}
    items.sort(key=lambda item: places[item.path])


@pytest.fixture(scope="session")
def engine_folder() -> Iterator[Path]:
    """Return a folder with a path short enough for sockets, gone at the end. Begins by removing killed sessions'."""
    for left in _PLACE.glob(f"{_PREFIX}*"):
        owner = Pid.read(left / _OWNER)
        if owner is not None and not owner.alive:
            for record in [*left.glob("*/dockerd.pid"), *left.glob("*/engine/dockerd.pid")]:
                PrivateEngine(record.parent).stop()
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PLACE))
    # Another user's PostgreSQL passes through it; nobody else can list it.
    folder.chmod(0o711)
    Pid.own().write(folder / _OWNER)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """Return a folder that every user can enter, with a path short enough for sockets; gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="moorage-open-", dir=_PLACE))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def engine(engine_folder: Path) -> Iterator[PrivateEngine]:
    """Return a Docker Engine that belongs to the tests alone; never one that was there before."""
    with PrivateEngine(engine_folder / "engine") as private:
        ensure_sample_image(private)
        yield private


@pytest.fixture(scope="session")
def sample_image(engine: PrivateEngine) -> str:
    """Return the name of an image with busybox in it, present in `engine`."""
    return ensure_sample_image(engine)


@pytest.fixture(scope="session")
def postgres(engine_folder: Path) -> Iterator[PrivatePostgres]:
    """Return a PostgreSQL server that belongs to the tests alone."""
    with PrivatePostgres(engine_folder / "postgres") as private:
        yield private


@pytest.fixture
def postgres_url(postgres: PrivatePostgres) -> str:
    """Return the URL of an empty PostgreSQL database, as DATABASE_URL takes it."""
    return postgres.create_database(f"empty_{uuid4().hex}")


@pytest.fixture(scope="module")
def stack(engine: PrivateEngine, sample_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a running controller and an agent that is enrolled with it: one for each file of tests."""
    assert sample_image == IMAGE
    made = Stack(tmp_path_factory.mktemp("stack"), engine)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
async def member(engine: PrivateEngine, sample_image: str, tmp_path: Path) -> AsyncIterator[Member]:
    """Return a member whose controller is not running yet; its agent is ended afterwards."""
    assert sample_image == IMAGE
    made = Member(tmp_path, engine)
    yield made
    if made.agent.process.alive:
        await asyncio.to_thread(made.agent.terminate)
