"""`moorage`, the command line: names instead of ids, tables and JSON, exit codes, and a private token file."""

import asyncio
import io
import json
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from factories import PASSWORD, World
from fakes import FakeHost, Plan, settle
from moorage_cli.main import main
from moorage_common.docker.states import OperationKind

SQLITE_ONLY = "The command line sees the API alone."

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
def run(logs: io.StringIO, tmp_path: Path) -> Run:
    """Return a function that runs the command line beside the controller, in its own home."""
    assert logs is not None, "what the controller logs must not get into what the command line prints"
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "COLUMNS": "200"}
    empty = dict.fromkeys(("MOORAGE_URL", "MOORAGE_TOKEN"), "")

    async def made(*argv: str, stdin: str | None = None, **environment: str) -> Result:
        env = {**home, **empty, **environment}
        return await asyncio.to_thread(CliRunner().invoke, main, list(argv), input=stdin, env=env)

    return made


@pytest.fixture
async def admin(world: World, run: Run) -> Run:
    """Return the same, logged in as an admin."""
    login = await run("login", world.nobody.url, "-u", "admin", "--password-file", "-", stdin=f"{PASSWORD}\n")
    assert login.exit_code == 0, login.output
    return run


async def test_login_is_stored_privately_and_revoked_on_logout(world: World, admin: Run, tmp_path: Path) -> None:
    path = tmp_path / "config" / "moorage" / "login.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    kept = json.loads(path.read_text())
    assert set(kept) == {"url", "token"}
    assert (await admin("servers")).exit_code == 0
    assert (await admin("logout")).output == "Logged out.\n"
    assert not path.exists()
    (await world.nobody.get("/api/apps", Authorization=f"Bearer {kept['token']}")).expect(401)
    after = await admin("servers")
    assert after.exit_code == 3
    assert "You are not logged in" in after.output


async def test_wrong_password_and_wrong_url_give_different_errors(world: World, run: Run) -> None:
    wrong = await run("login", world.nobody.url, "-u", "admin", stdin="not-it\n")
    assert wrong.exit_code == 3
    assert "(bad_credentials)" in wrong.output
    assert "not-it" not in wrong.output
    nobody = await run("login", "http://127.0.0.1:9", "-u", "admin", stdin="x\n")
    assert nobody.exit_code == 5
    assert "can't be reached" in nobody.output
    for text in ("example.com", "ftp://example.com", "http://"):
        assert (await run("login", text, "-u", "a", stdin="x\n")).exit_code == 1


async def test_script_token_is_sent_only_to_its_own_controller(world: World, admin: Run, tmp_path: Path) -> None:
    made = await world.admin.post("/api/tokens", {"name": "script", "scopes": ["read"]})
    token = made.expect(201)["token"]
    (tmp_path / "config" / "moorage" / "login.json").unlink()
    fine = await admin("servers", "--json", MOORAGE_URL=world.nobody.url, MOORAGE_TOKEN=token)
    assert (fine.exit_code, json.loads(fine.output)) == (0, [])
    assert (await admin("servers", MOORAGE_URL="http://127.0.0.1:9")).exit_code == 3
    assert (await admin("servers", MOORAGE_TOKEN=token)).exit_code == 3


async def test_servers_and_apps_are_listed_as_table_and_json(
    world: World, admin: Run, host: FakeHost, running_app_id: str
) -> None:
    assert host.reachable
    table = (await admin("apps")).output.splitlines()
    assert table[0].split() == ["NAME", "SERVER", "PROJECT", "STATUS", "HEALTH", "STOPS", "URL", "LAST", "ERROR"]
    assert "QMS Backend" in table[1]
    assert "running" in table[1]
    assert (await admin("apps", "--running", "--server", "Production Server 1")).output.splitlines() == table
    as_api = (await world.admin.get("/api/apps")).expect(200)
    assert json.loads((await admin("apps", "--json")).output) == as_api
    assert as_api[0]["id"] == running_app_id
    assert "online" in (await admin("servers")).output


async def test_start_and_stop_by_name_show_compose_output(
    world: World, admin: Run, host: FakeHost, timed_app_id: str
) -> None:
    host.plans[OperationKind.UP] = Plan(output=b"Container web-1 Started\n")
    started = await admin("start", "QMS Backend", "--minutes", "30")
    assert started.exit_code == 0, started.output
    assert "Container web-1 Started" in started.output
    assert "QMS Backend is running, until " in started.output
    app = await world.app(timed_app_id)
    assert app["stopAt"] - app["startedAt"] == 30 * 60_000
    longer = await admin("extend", "Production Server 1/QMS Backend", "-m", "10", "--json")
    assert json.loads(longer.output)["stopAt"] == app["stopAt"] + 10 * 60_000
    stopped = await admin("stop", timed_app_id)
    assert stopped.output.splitlines()[-1] == "QMS Backend is stopped."
    assert (await admin("extend", "QMS Backend", "-m", "10")).exit_code == 1
    who = (await admin("audit", "--action", "STOP")).output.splitlines()
    assert "admin" in who[1]


async def test_failed_command_shows_its_reason(admin: Run, host: FakeHost, timed_app_id: str) -> None:
    assert timed_app_id
    host.plans[OperationKind.UP] = Plan(1, b"no such image: web\n", leaves=())
    failed = await admin("start", "QMS Backend")
    assert failed.exit_code == 1
    assert "no such image: web" in failed.output
    assert "The start of QMS Backend failed: " in failed.output


async def test_table_outside_a_terminal_breaks_no_line(admin: Run, host: FakeHost, timed_app_id: str) -> None:
    assert timed_app_id
    host.plans[OperationKind.UP] = Plan(1, b"no such image: " + b"of this name " * 30 + b"anywhere\n", leaves=())
    assert (await admin("start", "QMS Backend")).exit_code == 1
    head, *rows = (await admin("apps")).output.splitlines()
    assert len(rows) == 1, head
    assert rows[0].rstrip().endswith("anywhere")


async def test_detached_start_can_be_followed_and_cancelled(
    admin: Run, host: FakeHost, timed_app_id: str, world: World
) -> None:
    assert timed_app_id
    host.hold()
    begun = await admin("start", "QMS Backend", "--detach", "--json")
    operation_id = json.loads(begun.output)["id"]
    await settle()
    assert (await admin("cancel", operation_id)).exit_code == 0
    host.let_go()
    await world.clock.run(30)
    ended = await admin("follow", operation_id)
    assert ended.exit_code == 1
    assert "The start cancelled: " in ended.output


async def test_unknown_or_ambiguous_app_name_is_refused(world: World, admin: Run, host: FakeHost, app_id: str) -> None:
    assert host.reachable
    assert (await admin("stop", "nothing")).exit_code == 4
    app = await world.app(app_id)
    await world.new_app(app["serverId"], cdPath="/srv/apps/other")
    twice = await admin("stop", "QMS Backend")
    assert twice.exit_code == 4
    assert "2 apps are called QMS Backend: give SERVER/NAME or the id." in twice.output
    assert (await admin("stop", app_id)).exit_code == 0
    assert (await admin("follow", "no-id")).exit_code == 4


async def test_api_refusals_are_shown(admin: Run, world: World) -> None:
    await world.new_server(name="bare")
    refused = await admin("bootstrap", "bare")
    assert refused.exit_code == 1
    assert "(" in refused.output
    assert "Traceback" not in refused.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_shell_completes_commands_and_names(
    admin: Run, host: FakeHost, app_id: str, shell: str, tmp_path: Path
) -> None:
    assert host.reachable
    assert app_id
    assert "_MOORAGE_COMPLETE" in (await admin("completion", shell)).output
    words = {"COMP_WORDS": "moorage stop QM", "COMP_CWORD": "2" if shell != "fish" else "QM"}
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "_MOORAGE_COMPLETE": f"{shell}_complete", **words}
    found = await asyncio.to_thread(CliRunner().invoke, main, [], env=home, prog_name="moorage")
    assert "QMS Backend" in found.output
