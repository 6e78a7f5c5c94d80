"""Names that would be commands if a shell saw them unquoted."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from moorage_common.docker.states import OperationKind
from moorage_controller.hosts.ssh.transport import SshTransport
from moorage_controller.hosts.transport import End, EndKind, HostApp, HostRefusedError, Order
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from transport_rigs import SLOW, SshDesk, remove_ssh_apps, ssh_app

from .conftest import SHELLS

HOSTILE = (
    "two words",
    " leading and trailing ",
    "it's",
    "'quoted'",
    '"double"',
    "$(touch owned)",
    "`touch owned`",
    "; touch owned;",
    "&& touch owned",
    "| touch owned",
    "& touch owned &",
    "> owned",
    "$HOME",
    "${IFS}touch${IFS}owned",
    "!touch owned",
    "!!",
    "*",
    "?",
    "[a-z]",
    "~",
    "-rf",
    "--",
    "# comment",
    "back\\slash",
    "end\\",
    "%s%n",
    "(touch owned)",
    "{a,b}",
    "tab\there",
    "é ü ñ 日本 🚢",
    "\u202eright to left",
    "'; touch owned; '",
    "'\"'\"'`touch owned`",
    "\x01\x1b[31m",
    "EOF",
    "a" * 200,
)


@pytest.fixture(scope="module")
def sshd(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[PrivateSshd]:
    """Return an sshd whose users' login shells record their arguments."""
    assert sample_image
    folder = (short_folder / "hostile").resolve()
    users = [LabUser(f"u-{name}", f"{folder}/shells/logged-{name}") for name in SHELLS]
    made = PrivateSshd(folder, engine, users)
    (folder / "shells").mkdir(parents=True)
    (folder / "calls").mkdir(mode=0o777)
    (folder / "calls").chmod(0o777)
    for name in SHELLS:
        program = "/bin/busybox ash" if name == "ash" else f"/usr/bin/{name}"
        shell = folder / "shells" / f"logged-{name}"
        shell.write_text(f'#!/bin/bash\nprintf \'%s\\n\' "$*" >>{folder}/calls/{name}\nexec {program} "$@"\n')
        shell.chmod(0o755)
    with made as running:
        yield running
        remove_ssh_apps(running, engine)


async def outcome(transport: SshTransport, cd_path: str) -> tuple[str, End]:
    """Start the app in a directory; return its output and its end."""
    sent = Order(uuid4(), OperationKind.UP, HostApp(cd_path))
    await transport.start(sent)
    raw = b""
    async for item in transport.follow(sent.operation_id, 0):
        if isinstance(item, End):
            return raw.decode(), item
        raw += item.data
    raise AssertionError("it ended without an end")


def owned(home: Path) -> list[Path]:
    """Return the files that a name run as a command would have created."""
    return [path for path in (*home.rglob("*owned*"), *Path("/").glob("owned*")) if path.is_file()]


@pytest.mark.parametrize("shell", SHELLS)
async def test_hostile_name_is_never_run_as_command(sshd: PrivateSshd, shell: str) -> None:
    desk = SshDesk(sshd)
    transport = desk.transport(f"u-{shell}")
    place = sshd.apps / shell
    place.mkdir()
    for name in HOSTILE:
        (place / name).mkdir()
    async with asyncio.timeout(150):
        ends = await asyncio.gather(*(outcome(transport, f"{place}/{name}") for name in HOSTILE))
    for name, (output, end) in zip(HOSTILE, ends, strict=True):
        # Compose ran in the right directory, and found no file there.
        assert (end.kind, end.exit_code) == (EndKind.EXITED, 1), (name, output)
        assert "no configuration file provided" in output, name
        assert end.observed is not None
        assert end.observed.cd_path == f"{place}/{name}"
    assert set((sshd.folder / "calls" / shell).read_text().splitlines()) == {"-c /bin/sh"}
    assert sorted(p.name for p in place.iterdir()) == sorted(HOSTILE)
    assert not owned(sshd.home(f"u-{shell}"))
    await desk.pool.close()


@pytest.mark.parametrize("shell", SHELLS)
async def test_app_with_hostile_name_is_started_and_stopped(sshd: PrivateSshd, shell: str) -> None:
    desk = SshDesk(sshd)
    transport = desk.transport(f"u-{shell}")
    name = f"{shell} $(touch owned) `touch owned` ' \" \\ ! é;&|"
    cd_path = ssh_app(sshd, "name: hostile\n" + SLOW.partition("    healthcheck")[0], name)
    output, end = await outcome(transport, cd_path)
    assert (end.kind, end.exit_code) == (EndKind.EXITED, 0), output
    assert end.observed is not None
    assert [c.alive for c in end.observed.containers] == [True]
    (Path(cd_path) / "compose.yaml").unlink()  # the sweep has to find it by its labels
    sent = Order(uuid4(), OperationKind.DOWN, HostApp(cd_path))
    await transport.start(sent)
    items = [item async for item in transport.follow(sent.operation_id, 0)]
    assert isinstance(items[-1], End)
    assert items[-1].exit_code == 0, items
    assert items[-1].observed is not None
    assert list(items[-1].observed.containers) == []
    assert set((sshd.folder / "calls" / shell).read_text().splitlines()) == {"-c /bin/sh"}
    await desk.pool.close()


@pytest.mark.parametrize("cd_path", ["/srv/a\nb", "/srv/a\rb", "/srv/\0", "relative", "", "/srv/\udcff"])
async def test_invalid_directory_is_refused(desk: SshDesk, cd_path: str) -> None:
    with pytest.raises(HostRefusedError) as caught:
        await desk.transport("u-bash").start(Order(uuid4(), OperationKind.UP, HostApp(cd_path)))
    assert caught.value.code == "invalid_request"
