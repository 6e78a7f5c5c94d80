"""Fixtures for the SSH tests: hosts with sshd in many configurations."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from transport_rigs import SshDesk, remove_ssh_apps

SHELLS = ("dash", "bash", "fish", "tcsh", "ash")
"""The login shells: all of them run the very same journal."""


@pytest.fixture(scope="session")
def sshd(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[PrivateSshd]:
    """Return an sshd with a user for each peculiarity."""
    assert sample_image
    folder = short_folder / "hosts"
    shells = {name: f"/usr/bin/{name}" for name in SHELLS} | {"ash": f"{folder.resolve()}/shells/ash"}
    users = [
        LabUser("op"),
        *(LabUser(f"u-{name}", path) for name, path in shells.items()),
        LabUser("noisy", shells["bash"]),
        LabUser("nologin", "/usr/sbin/nologin"),
        LabUser("poor", docker=False),
        LabUser("sudoer", docker=False, sudo="ALL=(root) NOPASSWD: /usr/local/bin/docker, /usr/bin/docker"),
        LabUser("locked-in"),
        LabUser("secret", password="pass'word $(x) é"),  # noqa: S106 - of a user that lives as long as the test
    ]
    with PrivateSshd(folder, engine, users) as running:
        (running.home("noisy") / ".bashrc").write_text("echo WELCOME to begin-1234; printf 'no newline at the end'\n")
        yield running
        remove_ssh_apps(running, engine)


@pytest.fixture
async def desk(sshd: PrivateSshd) -> AsyncIterator[SshDesk]:
    """Return the controller's side of that host."""
    made = SshDesk(sshd)
    yield made
    await made.pool.close()


StartSshd = Callable[..., PrivateSshd]


@pytest.fixture
def start_sshd(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[StartSshd]:
    """Return a function that starts the test's own sshd with lines of sshd_config."""
    assert sample_image
    with ExitStack() as stack:

        def start(*options: str, users: tuple[LabUser, ...] = (LabUser("op"),)) -> PrivateSshd:
            made = PrivateSshd(short_folder / uuid4().hex[:8], engine, users, options=options)
            stack.callback(remove_ssh_apps, made, engine)
            return stack.enter_context(made)

        yield start
