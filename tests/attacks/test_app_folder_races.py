"""An app's directory that is replaced between its inspection and its use."""

from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from moorage_agent.apps.app_files import opened
from moorage_agent.apps.directory_reader import DirectoryReader
from moorage_agent.apps.identities import Identities, WatchedApp
from moorage_agent.apps.policy import write_policy
from moorage_agent.apps.projects import read_project
from moorage_agent.deadlines.deadlines import Deadlines
from moorage_agent.docker.engine import Engine
from moorage_agent.operations.compose_runner import ComposeRunner
from moorage_common.compose.command import clean_environment
from moorage_common.compose.rules import Rules
from moorage_common.docker.app_identity import AppIdentity
from moorage_common.docker.states import OperationKind
from moorage_common.journal.journal import Journal, Order, Refused, State
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed
from moorage_lab.waiting import eventually_async


async def test_directory_replaced_by_symlink_is_not_entered(tmp_path: Path) -> None:
    """Between the check of an operation's directory and its command."""
    journal, elsewhere, app = Journal(tmp_path / "journal"), tmp_path / "elsewhere", tmp_path / "apps" / "app"
    journal.prepare()
    elsewhere.mkdir()
    app.mkdir(parents=True)

    async def swap() -> Refused | None:
        app.rename(tmp_path / "moved")
        app.symlink_to(elsewhere)
        return None

    order = Order(
        operation_id="6f2d3c1e-8a5b-4c7d-9e0f-1a2b3c4d5e6f",
        spec={},
        argv=["touch", "here"],
        environment=clean_environment(str(app), {}),
        directory=str(app),
        app_directory=str(app),
        project=None,
    )
    await journal.launch(order, swap)

    def ended() -> bool:
        record = journal.read(order.operation_id)
        return record is not None and record.state is State.EXITED and record.exit_code == 125

    await eventually_async(ended)
    assert b"symbolic link" in journal.read_output(order.operation_id, 0, 1000)
    assert not list(elsewhere.iterdir())
    assert not (tmp_path / "moved" / "here").exists()


async def test_compose_does_not_read_directory_replaced_by_symlink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the inspection of an app's files and Compose."""
    app, elsewhere = tmp_path / "apps" / "app", tmp_path / "elsewhere"
    app.mkdir(parents=True)
    elsewhere.mkdir()
    (app / "compose.yaml").write_text("name: checked\nservices: {a: {image: x}}\n")
    (elsewhere / "compose.yaml").write_text("not-for-you: {}\n")

    def swap(path: str) -> object:
        if not app.is_symlink():
            app.rename(tmp_path / "moved")
            app.symlink_to(elsewhere)
        return opened(path)

    monkeypatch.setattr("moorage_agent.apps.projects.opened", swap)
    reading = await read_project(installed("docker-compose"), str(app), {}, Rules([str(tmp_path / "apps")]))
    assert reading.project is None
    assert reading.problem_code == "unreadable_compose_file"
    assert "not-for-you" not in reading.problem


async def test_file_swapped_during_compose_read_is_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid at the first inspection, and valid again at the second."""
    app, secret = tmp_path / "app", tmp_path / "secret"
    app.mkdir()
    secret.write_text("not-for-you:x:1:\n")
    file, good = app / "compose.yaml", "name: checked\nservices: {a: {image: x}}\n"
    file.write_text(good)
    swaps = 0

    def swap(path: str) -> object:
        nonlocal swaps
        swaps += 1
        file.unlink()
        file.symlink_to(secret)
        return opened(path)

    def swap_back(raw: str) -> str:
        file.unlink(missing_ok=True)
        file.write_text(good)
        return raw

    monkeypatch.setattr("moorage_agent.apps.projects.opened", swap)
    monkeypatch.setattr("moorage_agent.apps.projects.error_sentence", swap_back)
    reading = await read_project(installed("docker-compose"), str(app), {}, Rules([str(app)]))
    assert swaps
    assert reading.problem_code == "unreadable_compose_file"
    assert "not-for-you" not in reading.problem


class _Late(Identities):
    """Reads an app, and changes its files afterwards."""

    async def ask(self, app: WatchedApp) -> AppIdentity:
        identity = await super().ask(app)
        Path(app.cd_path, "compose.yaml").write_text("services: {a: {provider: {type: ./evil}}}\n")  # noqa: ASYNC240 - of a test's own
        return identity


async def test_file_swapped_before_start_is_inspected_again(tmp_path: Path, engine: PrivateEngine) -> None:
    app, mark, policy = tmp_path / "app", tmp_path / "was-run", tmp_path / "policy.toml"
    app.mkdir()
    (app / "compose.yaml").write_text("services: {a: {image: x}}\n")
    (app / "evil").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (app / "evil").chmod(0o755)
    write_policy(policy, [str(tmp_path)])
    journal, environment = Journal(tmp_path / "journal"), {"DOCKER_HOST": engine.host}
    journal.prepare()
    with closing(DirectoryReader(policy, installed("docker-compose"), environment)) as reader:
        identities = _Late(reader)
        deadlines = Deadlines(tmp_path / "deadlines.json", "this-boot")
        compose = installed("docker-compose")
        runner = ComposeRunner(journal, Engine(engine.host), identities, deadlines, compose, environment)
        with pytest.raises(Refused) as refused:
            await runner.start(str(uuid4()), OperationKind.UP, WatchedApp(str(app), None))
        assert refused.value.code == "provider_not_allowed"
        assert not mark.exists()
