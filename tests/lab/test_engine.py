"""Private Engines: real ones, side by side, that leave the machine unchanged."""

import ipaddress
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest
from moorage_lab.hosts.network import bridge_exists, free_port, make_bridge, remove_bridge
from moorage_lab.programs.engine import PrivateEngine, find_engine
from moorage_lab.programs.images import SAMPLE_IMAGE, ensure_sample_image
from moorage_lab.programs.pids import with_argument
from moorage_lab.programs.processes import Process, plain_environment
from moorage_lab.waiting import eventually


@pytest.fixture
def second(engine_folder: Path) -> Iterator[PrivateEngine]:
    with PrivateEngine(engine_folder / "engine2") as private:
        ensure_sample_image(private)
        yield private
    private.remove()


def _serve(client: docker.DockerClient, text: str) -> int:
    """Run a web server named `web` in a network `lab`, and return the port of this machine it is published at."""
    client.networks.create("lab")
    port = free_port()
    page = f"echo {text} > /www/index.html; exec httpd -f -p 80 -h /www"
    client.containers.run(
        SAMPLE_IMAGE,
        ["sh", "-c", page],
        name="web",
        network="lab",
        ports={"80/tcp": ("127.0.0.1", port)},
        init=True,
        detach=True,
    )
    return port


def _fetch(port: int) -> str:
    done = subprocess.run(
        ["/bin/busybox", "wget", "-q", "-O", "-", f"http://127.0.0.1:{port}/"],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _firewall() -> str:
    return subprocess.run(["/usr/sbin/iptables", "-w", "-S"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def docker0() -> Iterator[Path]:
    """Return the kernel's path of the bridge of this machine's own Engine; create the bridge where it is missing."""
    shown = Path("/sys/class/net/docker0")
    made = not shown.exists()
    if made:
        make_bridge("docker0", ipaddress.IPv4Interface("172.31.255.1/24"))
    yield shown
    if made:
        remove_bridge("docker0")


def _check_networking(own: PrivateEngine) -> None:
    """Assert that a published port answers on this machine, and a name in the containers' network."""
    text = own.folder.name
    with closing(own.client()) as client:
        port = _serve(client, text)
        try:
            assert eventually(lambda: _fetch(port)) == text
            fetch = ["wget", "-q", "-O", "-", "http://web/"]
            assert client.containers.run(SAMPLE_IMAGE, fetch, network="lab", remove=True).decode().strip() == text
        finally:
            client.containers.get("web").remove(force=True)
            client.networks.get("lab").remove()


def test_two_engines_serve_side_by_side(engine: PrivateEngine, second: PrivateEngine) -> None:
    for own in (engine, second, engine):
        _check_networking(own)


def test_engine_restart_restarts_containers_by_their_policy(second: PrivateEngine) -> None:
    with closing(second.client()) as client:
        sleep = ["sleep", "600"]
        client.containers.run(SAMPLE_IMAGE, sleep, name="stays", init=True, detach=True)
        client.containers.run(
            SAMPLE_IMAGE, sleep, name="returns", init=True, detach=True, restart_policy={"Name": "always"}
        )
    second.restart()
    with closing(second.client()) as client:
        eventually(lambda: client.containers.get("returns").status == "running")
        assert client.containers.get("stays").status == "exited"


def test_engine_knows_its_containers_after_crash(second: PrivateEngine) -> None:
    with closing(second.client()) as client:
        client.containers.run(SAMPLE_IMAGE, ["sleep", "600"], name="one", init=True, detach=True)
    second.kill()
    assert not second.answers()
    second.start()
    with closing(second.client()) as client:
        assert client.containers.get("one").status == "exited"


def test_private_engine_leaves_machine_unchanged(engine_folder: Path, docker0: Path) -> None:
    before = (docker0 / "ifindex").read_text()
    private = PrivateEngine(engine_folder / "engine3")
    with private:
        ensure_sample_image(private)
        with closing(private.client()) as client:
            _serve(client, "x")
            bridge = f"br-{str(client.networks.get('lab').id)[:12]}"
        private.restart()
        assert (docker0 / "ifindex").read_text() == before
        assert bridge_exists(bridge)
        assert private.name in _firewall()
    private.remove()
    assert not bridge_exists(bridge)
    assert not bridge_exists(private.name)
    assert private.name not in _firewall()
    assert str(private.folder) not in Path("/proc/self/mountinfo").read_text()
    assert not private.folder.exists()


def test_leftovers_of_killed_owner_are_removed(engine_folder: Path) -> None:
    folder = engine_folder / "engine4"
    program = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from moorage_lab.programs.engine import PrivateEngine
        from moorage_lab.programs.images import SAMPLE_IMAGE, ensure_sample_image
        private = PrivateEngine(Path({str(folder)!r})).start()
        ensure_sample_image(private)
        private.client().containers.run(SAMPLE_IMAGE, ["sleep", "600"], init=True, detach=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    owner = Process("owner", [sys.executable, "-c", program], folder=engine_folder, environment=plain_environment())
    owner.start()
    eventually(lambda: not owner.alive, timeout=30)
    assert owner.exit_code == -signal.SIGKILL, owner.log_tail()
    socket = str(folder / "run/containerd.sock")
    assert with_argument(socket)
    with PrivateEngine(folder) as again:
        assert not with_argument(socket)
        assert again.answers()
    again.remove()


def test_sample_image_is_built_once_and_runs(engine: PrivateEngine, sample_image: str) -> None:
    with closing(engine.client()) as client:
        first = client.images.get(sample_image).id
        assert ensure_sample_image(engine) == sample_image
        assert client.images.get(sample_image).id == first
        said = client.containers.run(sample_image, ["sh", "-c", "id -un; ls -d /www; true && echo fine"], remove=True)
        assert said.decode().split() == ["root", "/www", "fine"]


def test_engine_is_found_only_where_one_answers(monkeypatch: pytest.MonkeyPatch, engine: PrivateEngine) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    found = find_engine()
    assert found is not None
    assert found.host == engine.host
    monkeypatch.setenv("DOCKER_HOST", f"unix://{os.devnull}")
    monkeypatch.setattr("moorage_lab.programs.engine._DEFAULT_HOST", f"unix://{os.devnull}")
    assert find_engine() is None


def test_hung_engine_can_be_stopped(second: PrivateEngine) -> None:
    second.hang()
    second.stop()
    assert not second.alive
    assert not bridge_exists(second.name)
