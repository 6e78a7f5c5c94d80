"""Malicious app directories on a host reached by SSH, and their effect on the controller."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from host_calls import order, run, watching
from moorage_controller.hosts.ssh import survey as surveys
from moorage_controller.hosts.ssh.transport import SshTransport
from moorage_controller.hosts.transport import EndKind, HostApp, HostRefusedError, Snapshot
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from transport_rigs import QUICK, SshDesk, docker_plugin, remove_ssh_apps, ssh_app

SECRET = "root:$6$not-for-you:20000:0:99999:7:::\n"  # noqa: S105 - what such a file looks like
SUDO = "ALL=(root) NOPASSWD: /usr/local/bin/docker, /usr/bin/docker"
WEB = QUICK.replace("    init: true\n", "    init: true\n    stop_grace_period: 0s\n")


@pytest.fixture(scope="module")
def sshd(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[PrivateSshd]:
    """Return an sshd with a user who may use Docker, and one who may by sudo alone."""
    assert sample_image
    users = [LabUser("op"), LabUser("sudoer", docker=False, sudo=SUDO)]
    with PrivateSshd(short_folder / "folders", engine, users) as running, docker_plugin(running):
        yield running
        remove_ssh_apps(running, engine)


@pytest.fixture
async def desk(sshd: PrivateSshd) -> AsyncIterator[SshDesk]:
    """Return the controller's side of that host."""
    made = SshDesk(sshd)
    yield made
    await made.pool.close()


async def refusal(transport: SshTransport, cd_path: str) -> str:
    """Return the code of a refused start; an observation gives the same."""
    shown = await transport.observe(HostApp(cd_path))
    with pytest.raises(HostRefusedError) as refused:
        await transport.start(order(cd_path))
    assert (refused.value.code, refused.value.sentence) == (shown.problem_code, shown.problem)
    assert refused.value.sentence.endswith((".", "why."))
    assert "not-for-you" not in refused.value.sentence
    return refused.value.code


def app_of(desk: SshDesk, text: str | None, **files: str) -> str:
    """Create an app's directory with these files, and a compose file where its text is given."""
    cd_path = ssh_app(desk.sshd, text or "")
    if text is None:
        Path(cd_path, "compose.yaml").unlink()
    for name, content in files.items():
        Path(cd_path, name).write_text(content)
    return cd_path


def program(directory: str, name: str) -> Path:
    """Put a program into an app's directory that creates a file beside itself when run; return that file."""
    folder = Path(directory)
    folder.chmod(0o777)
    mark, made = folder / f"{name}-was-run", folder / name
    made.write_text(f"#!/bin/sh\ntouch '{mark}'\nexit 1\n")
    made.chmod(0o755)
    return mark


def git_proxy(directory: str) -> Path:
    """Make an app's directory a git repository with a program that git runs to fetch; return that program's file."""
    mark = program(directory, "proxy")
    git = [shutil.which("git") or "git", "-C", directory]
    subprocess.run([*git, "init", "--quiet"], check=True, capture_output=True)
    subprocess.run([*git, "config", "core.gitProxy", f"{directory}/proxy"], check=True, capture_output=True)
    return mark


@pytest.mark.parametrize("user", ["op", "sudoer"])
async def test_inspection_runs_no_git_in_app_directory(desk: SshDesk, user: str) -> None:
    cd_path = ssh_app(desk.sshd, 'include: ["git://192.0.2.1/x.git"]\n')
    mark = git_proxy(cd_path)
    assert await refusal(desk.transport(user), cd_path) == "remote_resource_not_allowed"
    assert not mark.exists()


async def test_provider_in_app_directory_is_not_run(desk: SshDesk) -> None:
    cd_path = ssh_app(desk.sshd, "services: {web: {provider: {type: ./evil}}}\n")
    mark = program(cd_path, "evil")
    assert await refusal(desk.transport(), cd_path) == "provider_not_allowed"
    assert not mark.exists()


def _linked(name: str) -> Callable[[Path, Path], None]:
    return lambda directory, secret: (directory / name).symlink_to(secret)


def _named(directory: Path, secret: Path) -> None:
    (directory / ".env").write_text(f"COMPOSE_FILE={secret}\n")


READ = {
    "include": ("include: [SECRET]\n", None),
    "include-path": ("include: [{path: [SECRET]}]\n", None),
    "include-link": ("include: [inner.yaml]\n", _linked("inner.yaml")),
    "extends": ("services: {web: {extends: {file: SECRET, service: a}}}\n", None),
    "env-file": ("services: {web: {image: x, env_file: [{path: SECRET, format: raw}]}}\n", None),
    "env-file-link": ("services: {web: {image: x, env_file: [{path: a.env, format: raw}]}}\n", _linked("a.env")),
    "compose-file": (WEB, _named),
    "file-link": (None, _linked("compose.yaml")),
    "override-link": (WEB, _linked("compose.override.yaml")),
}


@pytest.mark.parametrize("user", ["op", "sudoer"])
@pytest.mark.parametrize("way", READ)
async def test_errors_do_not_quote_foreign_files(desk: SshDesk, sshd: PrivateSshd, way: str, user: str) -> None:
    """One that the SSH user may read, or that sudo may."""
    secret = sshd.folder / "secret"
    secret.write_text("not-for-you:x y z\n" if way.startswith("env-file") else SECRET)
    secret.chmod(0o644 if user == "op" else 0o600)
    text, lay_out = READ[way]
    cd_path = app_of(desk, text and text.replace("SECRET", str(secret)))
    if lay_out is not None:
        lay_out(Path(cd_path), secret)
    assert await refusal(desk.transport(user), cd_path) == "unreadable_compose_file"


@pytest.mark.parametrize("name", ["compose.yaml", ".env", "inner.yaml", "inner.env"])
async def test_named_pipe_never_blocks(desk: SshDesk, name: str) -> None:
    text = f"include: [inner.yaml]\n{WEB}    env_file: [{{path: inner.env, required: false}}]\n"
    files = {"compose.yaml": text, "inner.yaml": "services: {}\n"}
    files.pop(name, None)
    cd_path = app_of(desk, None, **files)
    os.mkfifo(Path(cd_path, name))
    async with asyncio.timeout(15):
        assert await refusal(desk.transport(), cd_path) == "unreadable_compose_file"


NONSENSE = {
    "deep": f"x-a: {'[' * 1500}{']' * 1500}\n{WEB}",
    "laughs": "".join(f"x-{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10) if n else 'ha'}]\n" for n in range(9)) + WEB,
    "large": f"{WEB}# {'x' * (5 << 20)}\n",
    "nul": f"{WEB}# \0\n",
}


@pytest.mark.parametrize("kind", NONSENSE)
async def test_unreadable_app_does_not_affect_others(desk: SshDesk, kind: str) -> None:
    transport, cd_path, other = desk.transport(), ssh_app(desk.sshd, NONSENSE[kind]), ssh_app(desk.sshd, WEB)
    assert await refusal(transport, cd_path) == "unreadable_compose_file"
    async with asyncio.timeout(30), aclosing(watching(transport, cd_path, other)) as items:
        snapshot = await anext(items)
    assert isinstance(snapshot, Snapshot)
    assert [app.problem_code for app in snapshot.apps] == ["unreadable_compose_file", ""]


async def test_ordinary_apps_still_work(desk: SshDesk) -> None:
    beside = app_of(desk, None, **{"common.yaml": "networks: {default: {}}\n"})
    text = f"include: [../{Path(beside).name}/common.yaml]\n{WEB}"
    volumes = "    env_file: [web.env]\n    volumes: ['./data:/data', '/etc/hostname:/host:ro', '~/x:/y']\n"
    cd_path = app_of(desk, text + volumes, **{"web.env": "A=1\n"})
    for user in ("op", "sudoer"):
        printed, end = await run(desk.transport(user), order(cd_path))
        assert (end.kind, end.exit_code) == (EndKind.EXITED, 0), printed


async def test_host_policy_applies_over_ssh(desk: SshDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, script = desk.sshd.folder / "policy.toml", surveys.script
    monkeypatch.setattr(
        surveys, "script", lambda name: script(name).replace("/etc/moorage-agent/policy.toml", str(policy))
    )
    inside, outside = ssh_app(desk.sshd, f"{WEB}    volumes: ['/etc:/x']\n"), ssh_app(desk.sshd, WEB)
    policy.write_text(f'allowed_roots = ["{inside}"]\nallow_bind_mounts = false\n')
    assert await refusal(desk.transport(), outside) == "path_not_allowed"
    assert await refusal(desk.transport(), inside) == "bind_mount_not_allowed"
    policy.write_text("allowed_roots = [\n")
    assert await refusal(desk.transport(), inside) == "policy_unreadable"
    policy.write_text("allowed_roots = []\nallow_bind_mounts = ['/etc']\n")
    assert (await desk.transport().observe(HostApp(inside))).problem_code == ""
