"""The agent's Debian package on a host that boots systemd: installed, upgraded during an operation, purged."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from certificate_issuer import Issuer
from fleet_controller import OLD, files_of
from lone_agent import DOWN, UP
from moorage_lab.hosts.host import Fleet, Host, HostError
from running_stack import SLOW

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
APP = Path("/srv/slow")
HELD = SLOW.replace("sleep 10; touch /ready; ", "").replace("retries: 60", "retries: 600")
"""Its start continues until /ready is created in db."""
DROP_IN = "/etc/systemd/system/moorage-agent.service.d/only.conf"


@pytest.fixture(scope="module")
def packages(bundles: Path) -> dict[str, Path]:
    """Return the packages of both bundles, by version."""
    made = {}
    for release in (OLD, version("moorage-agent")):
        argv = [sys.executable, str(ROOT / "packaging/deb.py"), "agent", "--dist", str(bundles), "--version", release]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        made[release] = bundles / f"moorage-agent_{release}_amd64.deb"
    return made


@pytest.fixture(scope="module")
def host(fleet: Fleet, packages: dict[str, Path]) -> Host:
    """Return a host that the packages were carried to."""
    made = fleet.add()[0]
    for release, package in packages.items():
        made.write(f"/root/{release}.deb", package.read_bytes())
    return made


def install(host: Host, release: str) -> str:
    return host.run("dpkg", "--install", f"/root/{release}.deb")


def status(host: Host) -> Any:  # noqa: ANN401 - JSON
    return json.loads(host.run("moorage-agent", "status", "--json"))


def enrol(host: Host, issuer: Issuer) -> str:
    """Enrol the host, and return the reply to the agent."""
    answer = issuer.answer(host.run("moorage-agent", "request-certificate"))
    host.write("/root/answer", answer)
    accept = "moorage-agent accept-certificate --controller https://controller.example --listen 0.0.0.0:7443"
    host.run("sh", "-c", f"{accept} --advertise {host.address}:7443 --allow-root /srv </root/answer; rm /root/answer")
    return answer


async def test_agent_package_installs_upgrades_and_purges(host: Host) -> None:
    before = files_of(host)
    install(host, OLD)
    assert host.run("systemctl", "is-enabled", "moorage-agent").strip() == "enabled"
    assert not host.succeeds("systemctl", "is-active", "moorage-agent")
    told = status(host)
    assert (told["enrolled"], told["version"].partition("-")[0]) == (False, OLD)
    old_build = told["version"]

    issuer = Issuer()
    answer = enrol(host, issuer)
    host.run("systemctl", "start", "moorage-agent")
    host.write(f"{APP}/compose.yaml", HELD)
    async with issuer.calls(f"{host.address}:7443", answer) as caller:
        operation_id = await caller.start(UP, APP)

    # A build that doesn't start: dpkg reports it, and the previous one continues.
    host.write(
        DROP_IN, f'[Service]\nExecStartPre=/bin/sh -c "test $(readlink /opt/moorage-agent/current) = {old_build}"\n'
    )
    with pytest.raises(HostError, match=f"(?s)doesn't start.*{old_build} runs again"):
        install(host, version("moorage-agent"))
    assert host.run("systemctl", "is-active", "moorage-agent").strip() == "active"
    assert status(host)["version"] == old_build

    host.run("rm", "-r", str(Path(DROP_IN).parent))
    host.run("dpkg", "--configure", "moorage-agent")
    build = status(host)["version"]
    assert build.partition("-")[0] == version("moorage-agent")
    assert host.run("readlink", "/opt/moorage-agent/previous").strip() == old_build
    async with issuer.calls(f"{host.address}:7443", answer) as caller, caller.watch() as watching:
        assert watching.host.agent_version == build
        assert f"moorage-op-{operation_id}.scope" in host.run("systemctl", "list-units", "--no-legend")
        host.run("docker", "exec", "slow-db-1", "touch", "/ready")
        assert (await caller.finish(operation_id)).end.exit_code == 0
        assert len(host.run("docker", "ps", "--quiet").split()) == 2
        assert (await caller.run(DOWN, APP)).end.exit_code == 0
    assert host.run("docker", "ps", "--all", "--quiet") == ""

    host.run("dpkg", "--remove", "moorage-agent")
    assert not host.succeeds("test", "-e", "/opt/moorage-agent")
    assert host.succeeds("test", "-e", "/var/lib/moorage/pki/agent.pem")
    install(host, version("moorage-agent"))
    assert host.run("systemctl", "is-active", "moorage-agent").strip() == "active"
    host.run("dpkg", "--purge", "moorage-agent")
    host.run("rm", "-r", "/srv/slow")
    assert {path for path in files_of(host) - before if not path.startswith("/var/lib/containerd/")} == set()
