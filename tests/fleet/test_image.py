"""The controller's image, on a base from debootstrap: it runs as nobody, on a read-only file system."""

import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import docker
import pytest
from moorage_lab.hosts.host import Fleet
from moorage_lab.hosts.host_image import HOST_IMAGE
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.waiting import eventually

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
RELEASE = version("moorage-controller")
IMAGE = "moorage-controller:test"
SECRETS = {"JWT_SECRET": "j" * 48, "ENCRYPTION_KEY": "e" * 48, "ADMIN_PASSWORD": "a-test-s-password"}


@pytest.fixture(scope="module")
def client(engine: PrivateEngine, fleet: Fleet, controller_bundle: Path) -> docker.DockerClient:
    """Return a client of an Engine that has the image."""
    assert fleet.key.exists()  # so the base is there
    client = engine.client()
    client.api.timeout = 300
    with tempfile.TemporaryFile() as context:
        with tarfile.open(fileobj=context, mode="w") as tar:
            tar.add(ROOT / "packaging/controller.Dockerfile", "Dockerfile")
            for program in ("controller", "agent"):
                name = f"moorage-{program}-{RELEASE}-linux-x86_64.tar.gz"
                tar.add(controller_bundle / name, f"dist/{name}")
        context.seek(0)
        arguments = {"BASE": HOST_IMAGE, "VERSION": RELEASE}
        client.images.build(fileobj=context, custom_context=True, tag=IMAGE, buildargs=arguments, rm=True)
    return client


def test_image_serves_as_nobody_on_read_only_file_system(client: docker.DockerClient) -> None:
    base, image = client.images.get(HOST_IMAGE), client.images.get(IMAGE)
    assert image.attrs["Size"] - base.attrs["Size"] < 260 * 2**20
    container = client.containers.run(
        IMAGE,
        detach=True,
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        tmpfs={"/tmp": ""},  # noqa: S108 - the container's own
        environment=SECRETS,
    )
    try:

        def healthy() -> bool:
            container.reload()
            assert container.status == "running", container.logs().decode()
            return bool(container.attrs["State"]["Health"]["Status"] == "healthy")

        eventually(healthy, timeout=60, what="a healthy container")
        assert container.exec_run(["id", "-u"]).output == b"10001\n"
        code, _ = container.exec_run(["/usr/lib/moorage-controller/moorage-controller", "create-user", "carl"])
        assert code == 0
        assert not any(secret in container.logs().decode() for secret in SECRETS.values())
        container.stop(timeout=20)
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0
    finally:
        container.remove(force=True, v=True)


def test_image_refuses_to_start_without_secrets(client: docker.DockerClient) -> None:
    with pytest.raises(docker.errors.ContainerError, match="missing_secret"):
        client.containers.run(IMAGE, remove=True)
