"""Which containers belong to which app: the agent derives the same labels as Compose, wherever the files are."""

import asyncio
import gc
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from multiprocessing import Pipe
from pathlib import Path

import grpc
import grpc.aio
import pytest
from lone_agent import DIRECTORY_LABEL, DOWN, UP, Caller, LoneAgent, code_of, compose
from moorage_agent.apps.directories import Directories, Question
from moorage_agent.apps.directory_reader import DirectoryReader
from moorage_agent.apps.projects import read_project
from moorage_agent.errors import DirectoryHangsError, RefusalError
from moorage_common.compose.rules import Rules
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_lab.hosts.hung_mount import HungMount
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed
from moorage_lab.waiting import eventually_async
from running_stack import IMAGE, SLEEPER

EXTRA = f"  extra: {{image: '{IMAGE}', init: true, stop_grace_period: 0s, command: sleep 1000, profiles: [x]}}\n"


def _plain(directory: Path) -> None:
    (directory / "compose.yaml").write_text(SLEEPER)


def _old_name(directory: Path) -> None:
    (directory / "docker-compose.yml").write_text(SLEEPER)


def _named(directory: Path) -> None:
    (directory / "compose.yaml").write_text(f"name: named-inside\n{SLEEPER}")


def _named_in_dot_env(directory: Path) -> None:
    _plain(directory)
    (directory / ".env").write_text("COMPOSE_PROJECT_NAME=named-in-env\n")


def _elsewhere(directory: Path) -> None:
    (directory / "deploy").mkdir()
    (directory / "deploy" / "prod.yaml").write_text(SLEEPER)
    (directory / ".env").write_text("# comment\nCOMPOSE_FILE=deploy/prod.yaml\n")


def _two_files(directory: Path) -> None:
    _elsewhere(directory)
    (directory / "more.yaml").write_text(f"services: {{more: {{image: '{IMAGE}'}}}}\n")
    (directory / ".env").write_text("COMPOSE_FILE=deploy/prod.yaml:more.yaml\n")


def _own_separator(directory: Path) -> None:
    _two_files(directory)
    (directory / ".env").write_text("COMPOSE_PATH_SEPARATOR=;\nCOMPOSE_FILE=deploy/prod.yaml;more.yaml\n")


def _absolute(directory: Path) -> None:
    _elsewhere(directory)
    (directory / ".env").write_text(f"COMPOSE_FILE={directory}/deploy/prod.yaml\n")


def _in_the_parent(directory: Path) -> None:
    (directory.parent / "compose.yml").write_text(SLEEPER)


def _linked_folder(directory: Path) -> None:
    _elsewhere(directory)
    (directory / "deploy").rename(directory / "releases")
    (directory / "deploy").symlink_to("releases")


def _linked_file(directory: Path) -> None:
    (directory / "shared").mkdir()
    (directory / "shared" / "x.yaml").write_text(SLEEPER)
    (directory / "compose.yaml").symlink_to("shared/x.yaml")


def _odd_name(directory: Path) -> None:
    odd = directory / "with 'quotes'; $(and) more"
    odd.mkdir()
    (odd / "prod.yaml").write_text(SLEEPER)
    (directory / ".env").write_text("COMPOSE_FILE=\"with 'quotes'; \\$(and) more/prod.yaml\"\n")


@pytest.mark.parametrize(
    "lay_out",
    [
        _plain,
        _old_name,
        _named,
        _named_in_dot_env,
        _elsewhere,
        _two_files,
        _own_separator,
        _absolute,
        _in_the_parent,
        _linked_folder,
        _linked_file,
        _odd_name,
    ],
)
async def test_project_name_equals_compose_label(
    engine: PrivateEngine, sample_image: str, tmp_path: Path, lay_out: Callable[[Path], None]
) -> None:
    assert sample_image == IMAGE
    directory = tmp_path / "some Dir"
    directory.mkdir()
    lay_out(directory)
    environment, rules = {"DOCKER_HOST": engine.host}, Rules([os.path.realpath(tmp_path)])  # noqa: ASYNC240 - of a test's own
    reading = await read_project(installed("docker-compose"), str(directory), environment, rules)
    assert reading.project is not None
    await asyncio.to_thread(compose, engine, directory, "create")
    try:
        with closing(engine.client()) as client:
            found = client.api.containers(
                all=True, filters={"label": f"com.docker.compose.project={reading.project.name}"}
            )
        labelled = {os.path.realpath(row["Labels"][DIRECTORY_LABEL]) for row in found}  # noqa: ASYNC240 - of a test's own
        assert labelled == {reading.project.directory}
    finally:
        await asyncio.to_thread(compose, engine, directory, "down")


@pytest.mark.parametrize("name", ["with space", "quo'te", 'dou"ble', "semi; touch x", "$(touch x)", "-dash", "a=b"])
async def test_directory_with_any_name_is_identified(agent: LoneAgent, caller: Caller, name: str) -> None:
    directory = agent.app(f"odd/{name}", f"name: odd\n{SLEEPER}")
    assert (await caller.run(UP, directory)).end.exit_code == 0
    assert list(agent.containers(directory).values()) == ["running"]
    assert (await caller.run(DOWN, directory)).end.exit_code == 0
    assert agent.containers(directory) == {}
    assert not list(agent.apps.rglob("x"))


async def test_directory_behind_symlink_is_identified(agent: LoneAgent, caller: Caller) -> None:
    real = agent.app("real-place", SLEEPER)
    link = agent.apps / "link"
    link.symlink_to(real)
    done = await caller.run(UP, link)
    assert (done.end.observed.cd_path, done.end.observed.real_directory) == (str(link), str(real))
    assert [c.state for c in done.end.observed.containers] == ["running"]
    stopped = await caller.run(DOWN, link)
    assert (stopped.end.exit_code, agent.containers(real)) == (0, {})


async def test_compose_file_in_subdirectory_is_identified(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("below", None)
    _elsewhere(directory)
    done = await caller.run(UP, directory)
    assert done.end.observed.project == pb.Project(name="deploy", directory=str(directory / "deploy"))
    assert [c.state for c in done.end.observed.containers] == ["running"]
    assert (await caller.run(DOWN, directory)).end.exit_code == 0
    assert agent.containers(directory) == {}


async def test_project_name_changed_after_start_is_still_stopped(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("renamed", f"name: name-before\n{SLEEPER}")
    assert (await caller.run(UP, directory)).end.exit_code == 0
    (directory / "compose.yaml").write_text(f"name: name-after\n{SLEEPER}")
    assert (await caller.run(DOWN, directory)).end.exit_code == 0
    assert agent.containers(directory) == {}


def _delete_file(directory: Path) -> None:
    (directory / "compose.yaml").unlink()


def _break_file(directory: Path) -> None:
    (directory / "compose.yaml").write_text("servces: {}\n")


def _delete_directory(directory: Path) -> None:
    shutil.rmtree(directory)


def _replace_by_file(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.write_text("")


@pytest.mark.parametrize("harm", [_delete_file, _break_file, _delete_directory, _replace_by_file])
async def test_stop_works_without_usable_compose_file(
    agent: LoneAgent, caller: Caller, harm: Callable[[Path], None]
) -> None:
    directory = agent.app(f"harmed{harm.__name__}", SLEEPER)
    started = await caller.run(UP, directory)
    networks = _networks(agent, started.end.observed.project.name)
    assert len(networks) == 1
    harm(directory)
    stopped = await caller.run(DOWN, directory)
    assert (stopped.end.exit_code, list(stopped.end.observed.containers)) == (0, [])
    assert agent.containers(directory) == {}
    assert _networks(agent, started.end.observed.project.name) == []


async def test_app_with_missing_subdirectory_is_found_by_last_project(agent: LoneAgent, caller: Caller) -> None:
    directory = agent.app("gone-below", None)
    _elsewhere(directory)
    last = (await caller.run(UP, directory)).end.observed.project
    (directory / ".env").unlink()
    shutil.rmtree(directory / "deploy")
    # Without the last project, nothing leads from the directory to its containers.
    stopped = await caller.run(DOWN, directory, last)
    assert (stopped.end.exit_code, agent.containers(directory)) == (0, {})


async def test_directories_with_same_name_stay_separate(agent: LoneAgent, caller: Caller) -> None:
    first, second = agent.app("a/twin", SLEEPER), agent.app("b/twin", SLEEPER)
    assert (await caller.run(UP, first)).end.exit_code == 0
    running = agent.containers(first)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.start(UP, second)
    assert (refused.value.code(), code_of(refused.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "project_taken")
    assert str(first) in (refused.value.details() or "")
    stopped = await caller.run(DOWN, second, pb.Project(name="twin", directory=str(second)))
    assert (stopped.end.exit_code, list(stopped.end.observed.containers)) == (0, [])
    assert agent.containers(first) == running == {"twin-web-1": "running"}
    assert len(_networks(agent, "twin")) == 1
    await caller.run(DOWN, first)
    assert (await caller.run(UP, second)).end.exit_code == 0
    assert agent.containers(second) == {"twin-web-1": "running"}


async def test_stop_removes_all_containers_and_no_volume(agent: LoneAgent, caller: Caller) -> None:
    volume = "volumes: {kept: {}}\n"
    text = f"{SLEEPER}{EXTRA}  data: {{image: '{IMAGE}', volumes: ['kept:/kept'], command: 'true'}}\n{volume}"
    directory = agent.app("everything", text)
    await caller.run(UP, directory)
    agent.compose(directory, "--profile", "x", "up", "-d", "extra")
    agent.compose(directory, "run", "-d", "web", "sleep", "500")
    agent.compose(directory, "run", "-d", "--name", "paused-one", "web", "sleep", "500")
    with closing(agent.engine.client()) as client:
        client.api.pause("paused-one")
        assert sorted(agent.containers(directory).values()) == ["exited", "paused", "running", "running", "running"]
        stopped = await caller.run(DOWN, directory)
        assert (stopped.end.exit_code, agent.containers(directory)) == (0, {})
        assert "Container paused-one" in stopped.output
        volumes = client.volumes.list(filters={"label": "com.docker.compose.project=everything"})
        assert [v.name for v in volumes] == ["everything_kept"]
        volumes[0].remove()


async def test_container_in_restart_loop_is_stopped(agent: LoneAgent, caller: Caller) -> None:
    text = f"services: {{web: {{image: '{IMAGE}', restart: always, command: 'false'}}}}\n"
    directory = agent.app("restarting", text)
    await caller.run(UP, directory)
    stopped = await caller.run(DOWN, directory)
    assert (stopped.end.exit_code, agent.containers(directory)) == (0, {})


async def test_stop_of_app_that_never_ran_succeeds(agent: LoneAgent, caller: Caller) -> None:
    for directory in (agent.app("never", SLEEPER), agent.app("never-any-file", None), agent.apps / "not-there"):
        stopped = await caller.run(DOWN, directory)
        assert (stopped.end.end, stopped.end.exit_code) == (pb.OPERATION_END_EXITED, 0)


def _networks(agent: LoneAgent, project: str) -> list[str | None]:
    with closing(agent.engine.client()) as client:
        return [n.name for n in client.networks.list(filters={"label": f"com.docker.compose.project={project}"})]


async def test_directory_reader_process_is_replaced_after_crash(agent: LoneAgent) -> None:
    reader = DirectoryReader(agent.data / "policy.toml", installed("docker-compose"), {})
    directory = str(agent.app("reader", None))
    assert await reader.ask(Directories.real_directory, directory, 20, directory) == directory
    reader.start()._process.kill()
    with suppress(DirectoryHangsError):  # of a question that it took along
        await reader.ask(Directories.real_directory, directory, 20, directory)
    assert await reader.ask(Directories.real_directory, directory, 20, directory) == directory
    assert reader.real_paths([directory, "/dev/stdin/../x"])[directory] == directory
    reader.close()


async def test_crashed_directory_reader_process_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with closing(DirectoryReader(tmp_path / "policy.toml", "", {})) as reader:
        reader.start()._process.kill()
        await eventually_async(lambda: set(threading.enumerate()) <= before, what="the end of its threads")


async def test_refusal_that_arrives_after_time_limit_is_not_logged(tmp_path: Path) -> None:
    unretrieved: list[Mapping[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: unretrieved.append(about))
    with closing(DirectoryReader(tmp_path / "policy.toml", "", {})) as reader:
        with pytest.raises(DirectoryHangsError):
            await reader.ask(Directories.real_directory, str(tmp_path), 0, str(tmp_path))
        with pytest.raises(RefusalError, match="can't be read"):  # there is no such policy
            await reader.ask(Directories.real_directory, str(tmp_path), 20, str(tmp_path))
    gc.collect()
    assert not unretrieved


async def test_hanging_directory_reader_process_releases_its_output(tmp_path: Path) -> None:
    hung = tmp_path / "hung"
    hung.mkdir()
    with HungMount(hung, os.getpid()):
        argv = [sys.executable, "-I", "-m", "moorage_agent", "directories", os.devnull, ""]
        questions, asking = Pipe(duplex=False)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=questions.fileno(), stdout=pipe, stderr=pipe, cwd="/"
        )
        questions.close()
        assert process.stderr is not None
        asking.send(Question(1, "real_path", (str(hung / "x"),), {}))
        tasks = Path(f"/proc/{process.pid}/task")

        def hangs() -> bool:
            return any(place.read_text() == "request_wait_answer" for place in tasks.glob("*/wchan"))

        await eventually_async(hangs, timeout=20, what="a thread that hangs")
        asking.close()
        async with asyncio.timeout(10):
            assert await process.stderr.read() == b""
        assert process.returncode is None, "it can't end yet"
    await process.wait()
