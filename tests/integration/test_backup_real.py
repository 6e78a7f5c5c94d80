"""A lost controller and its replacement from the backup, without a change for agents and users."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from moorage_lab.programs.controller import ADMIN, ControllerProcess
from moorage_lab.programs.processes import installed, plain_environment
from running_stack import SLEEPER, Stack


def run(verb: str, file: Path, folder: Path, environment: Mapping[str, str]) -> str:
    argv = [installed("moorage-controller"), verb, str(file)]
    settings = plain_environment(MOORAGE_DATA_DIR=str(folder / "data"), **environment)
    done = subprocess.run(argv, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_backup_moves_to_postgresql_and_back_with_a_running_app(
    stack: Stack, postgres_url: str, tmp_path: Path
) -> None:
    password = stack.controller.admin_password
    app_id = stack.make_app("kept", SLEEPER)
    started = stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    # Generated in the data folder on the first start: the backup excludes it, and reports that.
    key = (stack.controller.folder / "data" / "encryption_key").read_text().strip()
    environment: dict[str, str] = {}
    for name, url in (("on-postgresql", postgres_url), ("on-sqlite", "")):
        file, folder = tmp_path / f"{name}.backup", tmp_path / name
        said = run("backup", file, stack.controller.folder, environment)
        assert "encryption_key" in said.lower()
        stack.controller.kill()
        environment = {"DATABASE_URL": url, "ENCRYPTION_KEY": key}
        run("restore", file, folder, environment)
        # With another ADMIN_PASSWORD, which counts on an empty database only.
        stack.controller = ControllerProcess(folder, port=stack.controller.port, environment=environment).start()
        stack._admin = stack.controller.api().login(ADMIN, password)
        stack.wait_online()
        shown = stack.wait_app(app_id, status="running", health="healthy")
        assert (shown["startedAt"], shown["stopAt"]) == (started["startedAt"], started["stopAt"])
        assert stack.operation(started["operationId"])["state"] == "succeeded"
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
    assert stack.containers(stack.apps / "kept") == []
