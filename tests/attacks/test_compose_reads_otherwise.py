"""Ambiguous Compose files: the inspection reads the same files as Compose, or refuses the app."""

import asyncio
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from moorage_agent.apps.projects import read_project
from moorage_common.compose.command import clean_environment, config_command
from moorage_common.compose.rules import Rules
from moorage_lab.programs.processes import installed

WEB = "services: {web: {image: x, env_file: '%s'}}\n"
BESIDE = {"sub/i.yml": WEB % "${X:-../a.env}", "a.env": "", "n.env": "", "sub/.env": "X=@OUT/s.env\n"}
"""An included file that names a forbidden one where the variables are those of its own directory."""
EXTENDING = {
    "compose.yaml": "services: {web: {extends: {file: b.yml, service: s}}}\n",
    "c.yml": "services: {hidden: {image: x}}\n",
}
HIDDEN = "hidden: {image: x, env_file: '@OUT/s.env'}"


def including(element: str) -> Mapping[str, str]:
    return {"compose.yaml": f"include: [{{path: sub/i.yml, {element}}}]\n", **BESIDE}


def two_files(first: str, second: str, used: str) -> Mapping[str, str]:
    return {
        "compose.yaml": "include: [{path: i.yml, env_file: [1.env, 2.env]}]\n",
        "1.env": first,
        "2.env": second,
        "a.env": "",
        "i.yml": WEB % used,
    }


ATTACKS = {
    "directory empty": including("project_directory: '${E:-}'"),
    "directory reset": including("project_directory: !reset ."),
    "directory twice": including("Project_Directory: ., project_directory: "),
    "directory merged": including("project_directory: '', <<: {project_directory: .}"),
    "variables reset": including("env_file: !reset n.env"),
    "variables reset in a merge": including("<<: !reset {env_file: n.env}, env_file: []"),
    "variables twice": including("Env_file: n.env, env_file: []"),
    "variables merged": including("env_file: [], <<: {env_file: n.env}"),
    "path merged": {
        "compose.yaml": "include: [{<<: {path: d.yml}, path: [sub/i.yml]}]\n",
        "d.yml": "services: {}\n",
        **BESIDE,
    },
    "path reset": {
        "compose.yaml": "include: [{path: [!reset d.yml, sub/i.yml]}]\n",
        "d.yml": "services: {}\n",
        **BESIDE,
    },
    "variable in two files": two_files("X=a.env\n", "X=@OUT/s.env\n", "$X"),
    "variable of a variable": two_files("A=a.env\n", "A=@OUT/s.env\nX=$A\n", "$X"),
    "extended file reset": {
        **EXTENDING,
        "b.yml": f"services: {{s: {{extends: {{file: !reset c.yml, service: hidden}}}}, {HIDDEN}}}\n",
    },
    "extended file of two documents": {
        **EXTENDING,
        "c.yml": f"services: {{ok: {{image: x}}, {HIDDEN}}}\n",
        "b.yml": "services: {s: {extends: {file: c.yml, service: ok}}}\n---\n"
        "services: {s: {extends: {service: hidden}}, hidden: {image: x}}\n",
    },
    "variables behind a link": {"compose.yaml": WEB % "@APP/link/../s.env", "s.env": ""},
    "include behind a link": {"compose.yaml": "include: ['@APP/link/../s.yml']\n", "s.yml": "services: {}\n"},
    "extends behind a link": {
        "compose.yaml": "services: {leak: {extends: {file: '@APP/link/../s.yml', service: leak}}}\n",
        "s.yml": "services: {leak: {image: x}}\n",
    },
}
HONEST = {
    "merge and anchor": {
        **BESIDE,
        "compose.yaml": "x-i: &i {project_directory: .}\ninclude: [{<<: *i, path: sub/i.yml}]\n",
        "sub/i.yml": WEB % "a.env",
    },
    "reset in a service": {
        "compose.yaml": WEB % "a.env",
        "compose.override.yaml": "services: {web: {ports: !reset [], environment: !override {A: b}}}\n",
        "a.env": "",
    },
    "two files alike": two_files("X=a.env\n", "X=a.env\nB=1\n", "$X"),
    "dots without a link": {"compose.yaml": WEB % "${PWD}/sub/../a.env", **BESIDE},
}


def laid_out(tmp_path: Path, files: Mapping[str, str]) -> Path:
    """Write an app in the only root, and forbidden files beside the root."""
    out, app = tmp_path / "out", tmp_path / "root" / "app"
    (out / "deep").mkdir(parents=True)
    (out / "s.env").write_text("SECRET=not-for-you\n")
    (out / "s.yml").write_text("services: {leak: {image: not-for-you}}\n")
    for name, text in files.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text.replace("@OUT", str(out)).replace("@APP", str(app)))
    (app / "link").symlink_to(out / "deep")
    return app


def problem(app: Path) -> str:
    rules = Rules([str(app.parent)])
    reading = asyncio.run(read_project(installed("docker-compose"), str(app), {"HOME": str(app.parent)}, rules))
    return reading.problem


@pytest.mark.parametrize("name", ATTACKS)
def test_ambiguous_compose_file_is_refused(name: str, tmp_path: Path) -> None:
    app = laid_out(tmp_path.resolve(), ATTACKS[name])
    shown = problem(app)
    assert shown
    assert "not-for-you" not in shown
    environment = clean_environment(str(app), {"HOME": str(app.parent)})
    argv = config_command(installed("docker-compose"))
    told = subprocess.run(argv, cwd=app, env=environment, capture_output=True, text=True, check=True)
    assert "not-for-you" in told.stdout, "no attack any more"


@pytest.mark.parametrize("name", HONEST)
def test_unambiguous_compose_file_is_allowed(name: str, tmp_path: Path) -> None:
    assert problem(laid_out(tmp_path.resolve(), HONEST[name])) == ""
