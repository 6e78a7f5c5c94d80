"""Malicious app directories on a host with an agent: developers and containers can write their files."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from lone_agent import UP, Caller, Desk, LoneAgent, code_of
from moorage_common.compose.command import clean_environment
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed
from running_stack import IMAGE, SLEEPER

SECRET = "root:$6$not-for-you:20000:0:99999:7:::\n"  # noqa: S105 - what such a file looks like
WEB = f"services:\n  web:\n    image: {IMAGE}\n    init: true\n    stop_grace_period: 0s\n    command: sleep 600\n"


@pytest.fixture(scope="module")
def running(engine: PrivateEngine, sample_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoneAgent]:
    """Return a running agent."""
    assert sample_image == IMAGE
    desk = Desk().start()
    made = LoneAgent(tmp_path_factory.mktemp("agent"), engine, desk).start()
    yield made
    made.clear()
    made.process.terminate()
    desk.stop()


@pytest.fixture
def agent(running: LoneAgent) -> Iterator[LoneAgent]:
    """Return the running agent with its original policy; remove its apps after the test."""
    policy = running.data / "policy.toml"
    before = policy.read_bytes()
    yield running
    policy.write_bytes(before)
    running.clear()


@pytest.fixture
async def caller(agent: LoneAgent) -> AsyncIterator[Caller]:
    """Call the agent as the controller does."""
    async with agent.called() as made:
        yield made


async def seen(caller: Caller, directory: Path) -> pb.AppObservation:
    """Return the agent's problem of a stopped app, for which it reads the files."""
    reply: pb.GetAppResponse = await caller.stub.GetApp(
        pb.GetAppRequest(app=pb.App(cd_path=str(directory))), timeout=30
    )
    return reply.app


async def refusal(caller: Caller, directory: Path) -> tuple[str | None, str]:
    """Return code and sentence of a refused start; an observation gives the same."""
    shown = await seen(caller, directory)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.start(UP, directory)
    sentence = refused.value.details() or ""
    assert (code_of(refused.value), sentence) == (shown.problem_code, shown.problem)
    assert sentence.endswith(".")
    assert "not-for-you" not in sentence
    return code_of(refused.value), sentence


def program(directory: Path, name: str) -> Path:
    """Put a program into an app's directory that creates a file beside itself when run; return that file."""
    mark = directory / f"{name}-was-run"
    made = directory / name
    made.write_text(f"#!/bin/sh\ntouch '{mark}'\nexit 1\n")
    made.chmod(0o755)
    return mark


def _git_proxy(directory: Path) -> Path:
    mark = program(directory, "proxy")
    git = [shutil.which("git") or "git", "-C", str(directory)]
    subprocess.run([*git, "init", "--quiet"], check=True, capture_output=True)
    subprocess.run([*git, "config", "core.gitProxy", str(directory / "proxy")], check=True, capture_output=True)
    return mark


async def test_inspection_runs_no_git_in_app_directory(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("git-proxy", 'include: ["git://192.0.2.1/x.git"]\n')
    mark = _git_proxy(directory)
    assert (await refusal(caller, directory))[0] == "remote_resource_not_allowed"
    assert not mark.exists()


@pytest.mark.parametrize("name", ["git", "oci"])
def test_dot_env_cannot_make_compose_fetch(tmp_path: Path, name: str) -> None:
    """The second line of defence: even for an uninspected file."""
    mark = _git_proxy(tmp_path)
    resource = {"git": "git://192.0.2.1/x.git", "oci": "oci://127.0.0.1:9/x"}[name]
    (tmp_path / "compose.yaml").write_text(f"include: ['{resource}']\n")
    (tmp_path / ".env").write_text("COMPOSE_EXPERIMENTAL_GIT_REMOTE=true\nCOMPOSE_EXPERIMENTAL_OCI_REMOTE=true\n")
    done = subprocess.run(
        [installed("docker-compose"), "config"],
        cwd=tmp_path,
        env=clean_environment(str(tmp_path), {"HOME": "/root"}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert f"COMPOSE_EXPERIMENTAL_{name.upper()}_REMOTE" in done.stderr
    assert not mark.exists()


async def test_dot_env_cannot_redirect_compose_files(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("disabled", "include: ['${X:-/etc/shadow}']\n")
    (directory / ".env").write_text("COMPOSE_DISABLE_ENV_FILE=1\nX=inner.yaml\n")
    (directory / "inner.yaml").write_text(WEB)
    shown = await seen(caller, directory)
    assert (shown.problem_code, shown.problem) == ("", "")


REMOTE = (
    "include: ['oci://127.0.0.1:9/x']\n",
    "include: [{path: 'git@192.0.2.1:x/y.git'}]\n",
    "include: [{path: [compose.yaml, 'https://192.0.2.1/x.git']}]\n",
    "include: ['${WHERE:-github.com/a/b}']\n",
    "services: {web: {extends: {file: 'ssh://git@192.0.2.1/x', service: a}}}\n",
    "services: {web: {build: 'https://192.0.2.1/x.git'}}\n",
    "services: {web: {build: {context: ., additional_contexts: {a: 'git://192.0.2.1/x'}}}}\n",
)


@pytest.mark.parametrize("text", REMOTE)
async def test_remote_resources_are_not_fetched(agent: LoneAgent, caller: Caller, text: str) -> None:
    directory = agent.app(f"remote-{REMOTE.index(text)}", text)
    assert (await refusal(caller, directory))[0] == "remote_resource_not_allowed"


async def test_provider_runs_only_if_listed_in_policy(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("provider", "services: {web: {provider: {type: ./evil}}}\n")
    mark = program(directory, "evil")
    assert (await refusal(caller, directory))[0] == "provider_not_allowed"
    assert not mark.exists()
    policy = agent.data / "policy.toml"
    policy.write_text(policy.read_text() + 'allow_providers = ["./evil"]\n')
    await caller.run(UP, directory)
    assert mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "x-a: &a {provider: {type: ./evil}}\nservices: {web: {<<: *a}}\n",
        "services: {web: {image: x}}\n---\nservices: {web: {provider: {type: ./evil}}}\n",
        "services: {web: {extends: {file: other.yaml, service: b}}}\n",
        "include: [other.yaml]\n",
        'services: {web: {"pro\\x76ider": {type: "${X:-./evil}"}}}\n',
    ],
)
async def test_provider_is_detected_in_every_place(
    agent: LoneAgent, caller: Caller, text: str, request: pytest.FixtureRequest
) -> None:
    directory = agent.app(f"hidden-{abs(hash(request.node.name))}", text)
    mark = program(directory, "evil")
    (directory / "other.yaml").write_text("services: {b: {provider: {type: ./evil}}}\n")
    assert (await refusal(caller, directory))[0] == "provider_not_allowed"
    assert not mark.exists()


def _written(name: str, text: str) -> Callable[[Path, Path], None]:
    def lay_out(directory: Path, _: Path) -> None:
        (directory / name).write_text(text)

    return lay_out


def _linked(name: str) -> Callable[[Path, Path], None]:
    return lambda directory, secret: (directory / name).symlink_to(secret)


OUTSIDE: dict[str, tuple[str | None, Callable[[Path, Path], None] | None]] = {
    "include": ("include: [SECRET]\n", None),
    "include-path": ("include: [{path: SECRET}]\n", None),
    "include-list": ("include: [{path: [inner.yaml, SECRET]}]\n", _written("inner.yaml", WEB)),
    "include-capital": ("include: [{Path: SECRET}]\n", None),
    "include-env-capital": ("include: [{path: inner.yaml, Env_File: SECRET}]\n", _written("inner.yaml", WEB)),
    "include-dots": ("include: [../../outside/secret]\n", None),
    "include-link": ("include: [inner.yaml]\n", _linked("inner.yaml")),
    "include-include": ("include: [inner.yaml]\n", _written("inner.yaml", "include: [../../outside/secret]\n")),
    "include-env": (
        f"{WEB}include: [{{path: inner.yaml, env_file: SECRET}}]\n",
        _written("inner.yaml", "services: {}\n"),
    ),
    "include-variable": ("include: ['${X}']\n", _written(".env", "X=../../outside/secret\n")),
    "extends": ("services: {web: {extends: {file: SECRET, service: a}}}\n", None),
    "env-file": ("services: {web: {image: x, env_file: SECRET}}\n", None),
    "env-file-list": ("services: {web: {image: x, env_file: [{path: SECRET, format: raw}]}}\n", None),
    "env-file-link": ("services: {web: {image: x, env_file: inner.env}}\n", _linked("inner.env")),
    "label-file": ("services: {web: {image: x, label_file: [SECRET]}}\n", None),
    "seccomp": ("services: {web: {image: x, security_opt: ['seccomp:SECRET']}}\n", None),
    "secret": ("services: {web: {image: x, secrets: [s]}}\nsecrets: {s: {file: SECRET}}\n", None),
    "config": ("services: {web: {image: x, configs: [s]}}\nconfigs: {s: {file: SECRET}}\n", None),
    "build": ("services: {web: {build: /etc}}\n", None),
    "dockerfile": ("services: {web: {build: {context: ., dockerfile: SECRET}}}\n", None),
    "dockerfile-link": ("services: {web: {build: .}}\n", _linked("Dockerfile")),
    "build-cache": ("services: {web: {build: {context: ., cache_to: ['type=local,dest=/root/x']}}}\n", None),
    "build-ssh": ("services: {web: {build: {context: ., ssh: ['k=SECRET']}}}\n", None),
    "compose-file": (WEB, _written(".env", "COMPOSE_FILE=../../outside/secret\n")),
    "compose-files": (WEB, _written(".env", "COMPOSE_FILE=compose.yaml:../../outside/secret\n")),
    "file-link": (None, _linked("compose.yaml")),
    "override-link": (WEB, _linked("compose.override.yaml")),
    "dot-env-link": (WEB, _linked(".env")),
}


@pytest.mark.parametrize("way", OUTSIDE)
async def test_file_outside_roots_is_neither_read_nor_shown(agent: LoneAgent, caller: Caller, way: str) -> None:
    secret = agent.folder / "outside" / "secret"
    secret.parent.mkdir(exist_ok=True)
    secret.write_text(SECRET)
    text, lay_out = OUTSIDE[way]
    directory = agent.app(f"outside-{way}", text and text.replace("SECRET", str(secret)))
    if lay_out is not None:
        lay_out(directory, secret)
    assert (await refusal(caller, directory))[0] == "path_not_allowed"


async def test_path_named_in_policy_may_be_read(agent: LoneAgent, caller: Caller) -> None:
    outside = agent.folder / "named"
    outside.mkdir()
    (outside / "web.env").write_text("A=1\n")
    directory = agent.app("named", f"{WEB}    env_file: {outside}/web.env\n")
    assert (await refusal(caller, directory))[0] == "path_not_allowed"
    policy = agent.data / "policy.toml"
    policy.write_text(policy.read_text() + f'allow_paths = ["{outside}"]\n')
    assert (await caller.run(UP, directory)).end.exit_code == 0


@pytest.mark.parametrize(
    "volumes",
    [
        "['/etc:/x:ro']",
        "['..:/x']",
        "['~/x:/x']",
        "['${X:-/etc}:/x']",
        "[{type: bind, source: /etc, target: /x}]",
        "[{type: bind, source: inner, target: /x}]",
    ],
)
async def test_bind_mounts_require_policy_permission(
    agent: LoneAgent, caller: Caller, volumes: str, request: pytest.FixtureRequest
) -> None:
    directory = agent.app(f"binds-{abs(hash(request.node.name))}", f"{WEB}    volumes: {volumes}\n")
    assert (await seen(caller, directory)).problem_code == ""
    policy = agent.data / "policy.toml"
    before = policy.read_text()
    for allowed, code in (("false", "bind_mount_not_allowed"), ('["/srv"]', "bind_mount_not_allowed"), ('["/"]', "")):
        policy.write_text(f"{before}allow_bind_mounts = {allowed}\n")
        assert (await seen(caller, directory)).problem_code == code


async def test_volume_that_mounts_a_directory_is_a_bind_mount(agent: LoneAgent, caller: Caller) -> None:
    options = "{type: none, o: bind, device: /etc}"
    directory = agent.app("device", f"{WEB}    volumes: ['v:/x']\nvolumes: {{v: {{driver_opts: {options}}}}}\n")
    policy = agent.data / "policy.toml"
    policy.write_text(f"{policy.read_text()}allow_bind_mounts = false\n")
    assert (await refusal(caller, directory))[0] == "bind_mount_not_allowed"


@pytest.mark.parametrize("name", ["compose.yaml", ".env", "inner.yaml", "inner.env"])
async def test_named_pipe_never_blocks(agent: LoneAgent, caller: Caller, name: str) -> None:
    text = f"include: [inner.yaml]\n{WEB}    env_file: [{{path: inner.env, required: false}}]\n"
    directory = agent.app(f"pipe-{name}", None if name == "compose.yaml" else text)
    if name != "inner.yaml":
        (directory / "inner.yaml").write_text("services: {}\n")
    os.mkfifo(directory / name)
    async with asyncio.timeout(10):
        assert (await refusal(caller, directory))[0] == "unreadable_compose_file"


LAUGHS = "".join(f"x-{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10) if n else 'ha'}]\n" for n in range(9))
NONSENSE = {
    "deep": f"x-a: {'[' * 1500}{']' * 1500}\n{WEB}",
    "laughs": LAUGHS + WEB,
    "large": f"{WEB}# {'x' * (1 << 20)}\n",
    "binary": "include: [!!binary L2V0Yy9zaGFkb3c=]\n",
    "self": f"x-a: &a [*a]\n{WEB}",
    "many": f"include: [{{path: [{', '.join(f'f{n}.yaml' for n in range(100))}]}}]\n",
    "latin": "services: {caf\udce9: {image: x}}\n",
}


@pytest.mark.parametrize("kind", NONSENSE)
async def test_unreadable_app_does_not_affect_others(agent: LoneAgent, caller: Caller, kind: str) -> None:
    directory, other = agent.app(f"nonsense-{kind}", None), agent.app(f"beside-{kind}", SLEEPER)
    (directory / "compose.yaml").write_text(NONSENSE[kind], errors="surrogateescape")
    assert (await refusal(caller, directory))[0] == "unreadable_compose_file"
    async with asyncio.timeout(20), caller.watch(directory, other) as watching:
        told = {path: app.problem_code for path, app in watching.apps.items()}
    assert told == {str(directory): "unreadable_compose_file", str(other): ""}


async def test_file_changed_after_inspection_is_detected(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("changed", f"include: [inner.yaml]\n{WEB}")
    (directory / "inner.yaml").write_text("services: {}\n")

    async def code() -> str:
        return (await seen(caller, directory)).problem_code

    assert await code() == ""
    mark = program(directory, "evil")
    (directory / "inner.yaml").write_text("services: {more: {provider: {type: ./evil}}}\n")
    assert await code() == "provider_not_allowed"
    assert not mark.exists()


async def test_ordinary_apps_still_work(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("team/usual", None)
    (directory / "compose.yaml").write_text(
        f"include: [../common.yaml, {{path: sub/more.yaml, env_file: [web.env]}}]\n{WEB}"
        "    env_file: [web.env, {path: none.env, required: false}]\n"
        "    volumes: ['./data:/data', 'kept:/kept', '/etc/hostname:/host:ro']\n"
        "    secrets: [s]\n"
        "    extends: {file: ../base.yaml, service: base}\n"
        "  built: {build: ./image, image: 'moorage-built:local', profiles: [never]}\n"
        "volumes: {kept: {}}\nsecrets: {s: {file: '${SECRET_FILE:?}'}}\n"
    )
    (directory / ".env").write_text("SECRET_FILE=./s.txt # beside\nKEY='a\nb'\n")
    (directory / "s.txt").write_text("s")
    (directory / "web.env").write_text("A=1\nT=true\n")
    (directory / "image").mkdir()
    (directory / "image" / "Dockerfile").write_text("FROM scratch\n")
    (directory / "sub").mkdir()
    (directory / "sub" / "more.yaml").write_text(f"services: {{once: {{image: '{IMAGE}', command: '${{T}}'}}}}\n")
    (directory.parent / "common.yaml").write_text("networks: {default: {}}\n")
    (directory.parent / "base.yaml").write_text("services: {base: {labels: {x: y}}}\n")
    done = await caller.run(UP, directory)
    assert done.end.exit_code == 0, done.output
    assert sorted(agent.containers(directory)) == ["usual-once-1", "usual-web-1"]
