"""`create-user`: beside a running controller, with a password that is not visible in `ps`."""

import asyncio
from pathlib import Path

from click.testing import CliRunner, Result
from factories import World, make_settings
from moorage_controller import cli
from moorage_controller.settings import Settings


def run(settings: Settings, *argv: str, stdin: str | None = None) -> Result:
    environment = {"MOORAGE_DATA_DIR": str(settings.moorage_data_dir), "DATABASE_URL": settings.database_url}
    return CliRunner().invoke(cli.main, ["create-user", *argv], input=stdin, env=environment)


async def status(world: World, username: str, password: str) -> tuple[int, str]:
    reply = await world.nobody.post("/api/auth/login", {"username": username, "password": password})
    return reply.status, reply.json["user"]["role"] if reply.status == 200 else ""


async def test_users_are_created_while_controller_runs(world: World, tmp_path: Path) -> None:
    settings = world.settings
    password = tmp_path / "password"
    await asyncio.to_thread(password.write_text, "from a file\n")
    given = await asyncio.to_thread(run, settings, "anna", "--admin", "--password-file", str(password))
    piped = await asyncio.to_thread(run, settings, "bert", "--password-file", "-", stdin="from a pipe\n")
    made = await asyncio.to_thread(run, settings, "carl")
    assert [(r.exit_code, r.output) for r in (given, piped)] == [(0, "anna was made.\n"), (0, "bert was made.\n")]
    assert made.exit_code == 0, made.output
    assert await status(world, "anna", "from a file") == (200, "admin")
    assert await status(world, "bert", "from a pipe") == (200, "user")
    assert await status(world, "carl", made.output.split()[-1]) == (200, "user")
    entries = await world.audit("CREATE")
    assert [(e["username"], e["userId"]) for e in entries if e["resourceType"] == "user"] == [
        ("command line", None)
    ] * 3


async def test_refusals_are_sentences(world: World) -> None:
    settings = world.settings
    taken = await asyncio.to_thread(run, settings, "admin")
    short = await asyncio.to_thread(run, settings, "anna", "--password-file", "-", stdin="2short\n")
    assert (taken.exit_code, short.exit_code) == (1, 1)
    assert "(username_taken)" in taken.output
    assert "8 characters" in short.output
    assert "2short" not in short.output


def test_missing_database_is_not_created(tmp_path: Path) -> None:
    result = run(make_settings(tmp_path), "anna")
    assert result.exit_code == 1
    assert "(unmigrated_database)" in result.output
    assert list(tmp_path.iterdir()) == []
