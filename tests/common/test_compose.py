"""The commands of an operation; the steps of a stop run in each installed shell."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moorage_common.compose.command import (
    clean_environment,
    config_command,
    down_command,
    is_own_file,
    start_command,
    steps_command,
    with_files,
)
from moorage_common.docker.states import OperationKind

SHELLS = {
    name: [program, *rest]
    for name, rest in (("dash", []), ("busybox", ["sh"]), ("bash", ["--posix"]))
    if (program := shutil.which(name))
}
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
hostile = st.sampled_from(
    ["'", '"', "$(exit 9)", "`exit 9`", ";exit 9;", "\n", "${1}", "$#", "\\", "*", "-n", "--", "3"]
)


def run(steps: list[list[str]], shell: str, directory: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    _, *rest = steps_command(steps)
    return subprocess.run([*SHELLS[shell], *rest], capture_output=True, check=False, cwd=directory)


def test_at_least_one_shell_is_installed() -> None:
    assert SHELLS


@pytest.mark.parametrize("shell", SHELLS)
@given(arguments=st.lists(words | hostile, max_size=14))
@settings(max_examples=40, deadline=None)
def test_arguments_are_passed_unchanged(shell: str, arguments: list[str]) -> None:
    step = ["/usr/bin/printf", "%s\\0", "begin", *arguments]
    expected = b"".join(word.encode() + b"\0" for word in ("begin", *arguments))
    ended = run([step, step], shell)
    assert (ended.stdout, ended.stderr, ended.returncode) == (expected * 2, b"", 0)


@pytest.mark.parametrize("shell", SHELLS)
@given(codes=st.lists(st.integers(0, 255), max_size=5))
@settings(max_examples=20, deadline=None)
def test_each_step_runs_and_last_exit_code_is_returned(shell: str, codes: list[int]) -> None:
    steps = [["/bin/sh", "-c", f"echo {number}; exit {code}"] for number, code in enumerate(codes)]
    ended = run(steps, shell)
    assert ended.stdout.decode().split() == [str(number) for number in range(len(codes))]
    assert ended.returncode == (codes[-1] if codes else 0)


@pytest.mark.parametrize("shell", SHELLS)
def test_failed_step_does_not_prevent_the_next(shell: str, tmp_path: Path) -> None:
    ended = run([["/no/such/program"], ["touch", "ran"]], shell, tmp_path)
    assert ended.returncode == 0
    assert (tmp_path / "ran").exists()
    assert run([["touch", "ran"], ["/no/such/program"]], shell, tmp_path).returncode == 127


def test_commands_match_the_guide() -> None:
    base = ["compose", "--progress", "json", "--ansi", "never"]
    assert start_command("compose", OperationKind.UP) == [*base, "up", "-d"]
    assert start_command("compose", OperationKind.RESTART) == [
        *base,
        "up",
        "-d",
        "--force-recreate",
        "--remove-orphans",
    ]
    down = [*base, "--env-file", "/dev/null", "-p", "web", "down", "--remove-orphans"]
    assert down_command("compose", "web") == down
    assert config_command("compose") == ["compose", "config", "--format", "json"]
    assert config_command("compose", environment=True) == ["compose", "config", "--environment"]


def test_environment_is_clean() -> None:
    base = {
        "HOME": "/home/x",
        "DOCKER_HOST": "unix:///x.sock",
        "DOCKER_CONFIG": "/cfg",
        "PATH": "/evil",
        "LD_LIBRARY_PATH": "/bundle",
        "JWT_SECRET": "secret",
        "COMPOSE_FILE": "other.yaml",
        "COMPOSE_PROJECT_NAME": "other",
        "PWD": "/wrong",
    }
    assert clean_environment("/srv/app", base) == {
        "BUILDX_CONFIG": "/cfg/buildx",
        "BUILDX_GIT_CHECK_DIRTY": "false",
        "BUILDX_GIT_INFO": "false",
        "BUILDX_GIT_LABELS": "",
        "COMPOSE_CONVERT_WINDOWS_PATHS": "false",
        "COMPOSE_DISABLE_ENV_FILE": "false",
        "COMPOSE_EXPERIMENTAL_GIT_REMOTE": "false",
        "COMPOSE_EXPERIMENTAL_OCI_REMOTE": "false",
        "HOME": "/home/x",
        "DOCKER_HOST": "unix:///x.sock",
        "DOCKER_CONFIG": "/cfg",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "PWD": "/srv/app",
    }
    assert clean_environment("/srv/app", {})["HOME"] == "/root"
    assert clean_environment("/srv/app", {})["DOCKER_CONFIG"] == "/root/.docker"


@pytest.mark.parametrize("base", [{"HOME": "/srv/app"}, {"HOME": "/root", "DOCKER_CONFIG": "/srv/app/./x/.."}])
def test_app_cannot_choose_docker_plugins(base: dict[str, str]) -> None:
    assert clean_environment("/srv/app", base)["DOCKER_CONFIG"] == "/nonexistent"
    assert clean_environment("/srv/app-beside", base)["DOCKER_CONFIG"] != "/nonexistent"


def test_environment_defaults_to_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///mine.sock")
    monkeypatch.setenv("ENCRYPTION_KEY", "secret")
    found = clean_environment("/srv/app")
    assert found["DOCKER_HOST"] == "unix:///mine.sock"
    assert "ENCRYPTION_KEY" not in found


def test_own_files_are_given_before_the_verb() -> None:
    argv = start_command(with_files(["docker", "compose"], ["a.yaml", "deploy/b.yaml"]), OperationKind.UP)
    assert argv[:6] == ["docker", "compose", "-f", "a.yaml", "-f", "deploy/b.yaml"]
    assert with_files("compose", ()) == ["compose"]


@pytest.mark.parametrize("path", ["prod.yaml", "deploy/prod.yaml", "with space.yml", "..prod", "bücher.yaml"])
def test_plain_path_below_a_directory_can_be_an_own_file(path: str) -> None:
    assert is_own_file(path)


@pytest.mark.parametrize("path", ["", "-", "-f", "/etc/x", "../x", "a/../x", "./x", "a//b", "a,b", "a\nb", "x" * 256])
def test_no_other_path_can_be_an_own_file(path: str) -> None:
    assert not is_own_file(path)
