"""Start and shutdown: data that is created once, and start-up errors with their sentences."""

import asyncio
import errno
import io
import signal
import socket
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner
from factories import ENCRYPTION_KEY, PASSWORD, Api, World, make_settings
from fakes import FakeClock, FakeHosts
from moorage_controller import cli
from moorage_controller.app import Controller
from moorage_controller.errors import StartupError
from moorage_controller.settings import Settings
from moorage_lab.waiting import eventually_async


def controller(folder: Path, **changes: object) -> Controller:
    """Return a controller on SQLite in a folder."""
    return on(make_settings(folder), **changes)


def on(settings: Settings, **changes: object) -> Controller:
    """Return a controller on the database of some settings."""
    clock = FakeClock()
    return Controller(settings.model_copy(update=changes), clock, hosts=lambda *_: FakeHosts(clock), clock_decides=True)


async def login(address: str, password: str) -> int:
    async with aiohttp.ClientSession() as session:
        body = {"username": "admin", "password": password}
        return (await Api(session, f"http://{address}", None).post("/api/auth/login", body)).status


async def test_first_admin_password_is_generated_once_and_works(tmp_path: Path) -> None:
    async with controller(tmp_path, admin_password="") as first:
        made = first.first_password
        assert made is not None
        assert len(made) >= 12
        assert await login(first.address, made) == 200
    async with controller(tmp_path, admin_password="") as second:
        assert second.first_password is None
        assert await login(second.address, made) == 200


async def test_given_admin_password_is_used_on_first_start_only_and_never_shown(tmp_path: Path) -> None:
    async with controller(tmp_path) as first:
        assert first.first_password is None
        assert await login(first.address, PASSWORD) == 200
    async with controller(tmp_path, admin_password=PASSWORD.upper()) as second:
        assert await login(second.address, PASSWORD.upper()) == 401


@pytest.mark.parametrize("password", ["é" * 37, "x" * 73], ids=["characters", "bytes"])
async def test_first_password_over_72_bytes_is_refused_with_a_sentence(tmp_path: Path, password: str) -> None:
    with pytest.raises(StartupError, match="ADMIN_PASSWORD") as caught:
        await controller(tmp_path, admin_password=password).__aenter__()
    assert password not in caught.value.sentence


async def test_only_generated_password_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], logs: io.StringIO
) -> None:
    told = []
    for times in (1, 2):

        def listening(times: int = times) -> bool:
            return logs.getvalue().count('"listening"') == times

        serving = asyncio.create_task(cli._serve(make_settings(tmp_path, admin_password="")))
        await eventually_async(listening, what="the controller")
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(serving, 5)
        seen = [*"".join(capsys.readouterr()).splitlines(), *logs.getvalue().splitlines()]
        told.append([line for line in seen if "password" in line])
    assert len(told[0]) == 1
    assert told[0][0].startswith("The first admin is admin, the password ")
    assert told[1] == []


async def test_second_controller_on_same_sqlite_is_refused(tmp_path: Path) -> None:
    async with controller(tmp_path) as first:
        with pytest.raises(StartupError, match="Another controller works in") as caught:
            await controller(tmp_path).__aenter__()
        assert caught.value.code == "data_dir_in_use"
        assert str(tmp_path) in caught.value.sentence
        assert await login(first.address, PASSWORD) == 200
    async with controller(tmp_path) as second:
        assert await login(second.address, PASSWORD) == 200


async def test_port_in_use_is_reported_and_resources_are_released(world: World, tmp_path: Path) -> None:
    port = int(world.nobody.url.rpartition(":")[2])
    folder = tmp_path / "other"
    with pytest.raises(StartupError, match=rf"127\.0\.0\.1:{port} can't be listened on") as caught:
        await controller(folder, port=port).__aenter__()
    assert caught.value.code == "address_in_use"
    async with controller(folder) as second:
        assert second.address


async def test_other_encryption_key_is_refused_with_advice(world: World) -> None:
    await world.stop()
    with pytest.raises(StartupError, match="ENCRYPTION_KEY_PREVIOUS") as caught:
        await on(world.settings, encryption_key="k" * 40).__aenter__()
    assert caught.value.code == "undecryptable_secret"
    async with on(world.settings, encryption_key="k" * 40, encryption_key_previous=f" {ENCRYPTION_KEY} ,") as again:
        assert again.address


async def test_stopped_controller_is_unreachable_and_leaves_no_task(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with controller(tmp_path) as first:
        address = first.address
    assert asyncio.all_tasks() == before
    host, _, port = address.rpartition(":")
    with socket.socket() as left:
        assert left.connect_ex((host, int(port))) == errno.ECONNREFUSED


def test_command_line_reports_startup_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOORAGE_DATA_DIR", str(tmp_path / "file" / "data"))
    result = CliRunner().invoke(cli.main, ["migrate"])
    assert result.exit_code == 1
    assert result.output.startswith("moorage-controller: The data folder ")
    assert result.output.strip().endswith("(data_dir)")
    assert result.output.count("\n") == 1


def test_migrate_creates_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_DATA_DIR", str(tmp_path / "data"))
    for _ in range(2):
        result = CliRunner().invoke(cli.main, ["migrate"])
        assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "data" / "moorage.db").exists()
