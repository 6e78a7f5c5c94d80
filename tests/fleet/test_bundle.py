"""The bundle runs with any C library of the host, and loads no library from it."""

import io
import re
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import pytest
from certificate_issuer import Issuer
from docker.models.containers import Container
from moorage_common.tls.join_token import JoinToken
from moorage_lab.hosts.network import listens
from moorage_lab.hosts.old_system import ensure_old_image
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.images import SAMPLE_IMAGE
from moorage_lab.waiting import eventually_async

pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).resolve().parents[2]
PORT = 7443


@pytest.fixture(scope="module")
def unpacked(bundles: Path, engine_folder: Path) -> Path:
    """Return the folder that the bundle was unpacked to; it bears the build's name."""
    with tarfile.open(bundles / f"moorage-agent-{version('moorage-agent')}-linux-x86_64.tar.gz") as tar:
        names = {name.partition("/")[0] for name in tar.getnames()}
        assert len(names) == 1
        tar.extractall(engine_folder / "unpacked", filter="tar")
    return engine_folder / "unpacked" / names.pop()


@pytest.fixture(scope="module", params=["no C library", "an older C library"])
def bare(
    request: pytest.FixtureRequest, engine: PrivateEngine, sample_image: str, unpacked: Path
) -> Iterator[tuple[Container, str]]:
    """Return a container without Python, with the bundle and the Engine's socket in it, and the path of the agent."""
    image = sample_image
    if request.param == "an older C library":
        image = ensure_old_image(engine, ROOT / ".cache" / "hosts")
    client = engine.client()
    network = client.networks.create("moorage-bundle")
    place = f"/opt/moorage-agent/{unpacked.name}"
    binds = [f"{unpacked}:{place}:ro", f"{engine.host.removeprefix('unix://')}:/var/run/docker.sock"]
    web = client.containers.run(SAMPLE_IMAGE, ["httpd", "-f"], name="controller", network=network.name, detach=True)
    made = client.containers.run(image, ["sleep", "1000"], volumes=binds, network=network.name, detach=True)
    yield made, f"{place}/moorage-agent"
    for container in (made, web):
        container.remove(force=True)
    network.remove()
    client.close()


def succeed(container: Container, *argv: str) -> str:
    code, output = container.exec_run(list(argv))
    assert isinstance(output, bytes)
    assert code == 0, output
    return output.decode()


def put(container: Container, name: str, content: str) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        file = tarfile.TarInfo(name)
        file.size = len(content.encode())
        tar.addfile(file, io.BytesIO(content.encode()))
    container.put_archive("/tmp", target.getvalue())  # noqa: S108  # the container's own


def address_of(container: Container) -> str:
    container.reload()
    (network,) = container.attrs["NetworkSettings"]["Networks"].values()
    return str(network["IPAddress"])


def libraries_of(container: Container, command: str) -> dict[str, set[str]]:
    """Return the files that the processes of a command have mapped as code, by process id."""
    found = {}
    for row in container.top(ps_args="-eo pid,args")["Processes"]:
        if command in row[-1]:
            maps = Path(f"/proc/{row[0]}/maps").read_text()
            found[row[0]] = set(re.findall(r"^\S+ r-xp .* (/\S+)$", maps, re.MULTILINE))
    return found


def test_bundle_prints_its_version_and_resolves_names(bare: tuple[Container, str]) -> None:
    container, agent = bare
    assert succeed(container, agent, "--version") == f"moorage-agent {Path(agent).parent.name}\n"
    put(container, "token", str(JoinToken.make(str(uuid4()), "0" * 64)))
    # Docker's own resolver knows this name, and a web server that knows nothing of Moorage answers there.
    enroll = f"exec {agent} enroll --token-file - --controller http://controller --listen 0.0.0.0:{PORT} </tmp/token"
    code, output = container.exec_run(["sh", "-c", enroll])
    assert (code, b"The controller refused: HTTP status" in output) == (1, True), output


async def test_bundle_serves_without_host_libraries(bare: tuple[Container, str]) -> None:
    container, agent = bare
    issuer = Issuer()
    answer = issuer.answer(succeed(container, agent, "request-certificate"))
    put(container, "answer", answer)
    address = address_of(container)
    accept = f"exec {agent} accept-certificate --controller http://controller --listen 0.0.0.0:{PORT}"
    succeed(container, "sh", "-c", f"{accept} --advertise {address}:{PORT} --allow-root /srv </tmp/answer")
    container.exec_run([agent, "serve"], detach=True)
    await eventually_async(lambda: listens(PORT, address), timeout=60, what="the agent")
    async with issuer.calls(f"{address}:{PORT}", answer) as caller, caller.watch() as watching:
        await watching.until(lambda: watching.host.engine_version != "")
        assert watching.host.agent_version == Path(agent).parent.name
        assert watching.host.compose_version
    mapped = libraries_of(container, f"{agent} serve")
    assert mapped
    own = str(Path(agent).parent)
    strange = {path for paths in mapped.values() for path in paths if not path.startswith(own)}
    assert strange == set()
    assert any("/libc.so.6" in path for paths in mapped.values() for path in paths)
