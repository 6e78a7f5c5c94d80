"""The system of a whole host: systemd, sshd and a Docker Engine, made once by debootstrap and cached as a tar file."""

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
from contextlib import closing
from pathlib import Path

import docker

from moorage_lab.programs.engine import Engine
from moorage_lab.programs.images import sample_archive
from moorage_lab.programs.processes import SYSTEM_PATH, plain_environment

HOST_IMAGE = "moorage-host:local"

_PACKAGES = (
    "systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,docker.io,iptables,iproute2,ca-certificates,procps,"
    "sudo,gzip"
)
_DISTRIBUTION = platform.freedesktop_os_release()
_SUITE = _DISTRIBUTION.get("VERSION_CODENAME", "")
"""The hosts have the machine's own release: its sources certainly have that one."""
DISTRIBUTION_ID = _DISTRIBUTION["ID"]
_SETUP = r"""
set -e
useradd --create-home --shell /bin/bash --groups docker ops
useradd --create-home --shell /bin/bash admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/admin
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/* /usr/share/doc /usr/share/man /usr/share/locale
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    systemd-timesyncd.service systemd-resolved.service getty.target console-getty.service systemd-networkd.service
mkdir -p /root/.ssh /home/ops/.ssh /home/admin/.ssh
"""
"""An ordinary user in Docker's group, and one who may become root without a password."""
_LABEL = "moorage.host"
_VERSION = "1"


def ensure_host_image(engine: Engine, cache: Path) -> str:
    """Import HOST_IMAGE into an Engine, making it first if not in `cache`; return its name. Takes a minute or two.

    Raises RuntimeError if it can't be made.
    """
    recipe = hashlib.sha256(f"{_VERSION} {_SUITE} {_PACKAGES} {_SETUP}".encode()).hexdigest()
    cache.mkdir(parents=True, exist_ok=True)
    packed = cache / f"host-{recipe[:16]}.tar"
    with (cache / "host.lock").open("w") as lock:
        # Two halves of a test run may request it at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not packed.exists():
            _make(cache / "host-root", packed)
    with closing(engine.client()) as client:
        if not _present(client, recipe):
            repository, tag = HOST_IMAGE.split(":")
            changes = [
                'CMD ["/sbin/init"]',
                "ENV container=docker",
                f"LABEL {_LABEL}={recipe}",
            ]
            client.api.timeout = 300
            client.api.import_image_from_file(str(packed), repository=repository, tag=tag, changes=changes)
    return HOST_IMAGE


def _present(client: docker.DockerClient, recipe: str) -> bool:
    try:
        return client.images.get(HOST_IMAGE).labels.get(_LABEL) == recipe
    except docker.errors.ImageNotFound:
        return False


def _make(root: Path, packed: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    options = [
        "--variant=minbase",
        "--components=main,universe" if DISTRIBUTION_ID == "ubuntu" else "--components=main",
    ]
    run_tool("debootstrap", *options, f"--include={_PACKAGES}", _SUITE, str(root), mirror())
    run_tool("chroot", str(root), "/bin/sh", "-c", _SETUP)
    (root / "usr/share/moorage").mkdir(parents=True)
    (root / "usr/share/moorage/sample.tar").write_bytes(sample_archive())
    (root / "etc/docker").mkdir(exist_ok=True)
    # The machine's own Docker may use an Engine's default address ranges.
    settings = {"bip": "172.31.255.1/24", "default-address-pools": [{"base": "172.30.0.0/16", "size": 24}]}
    (root / "etc/docker/daemon.json").write_text(json.dumps(settings))
    part = packed.with_suffix(".part")
    with tarfile.open(part, "w") as tar:
        tar.add(root, arcname=".")
    part.replace(packed)
    shutil.rmtree(root, ignore_errors=True)


def run_tool(*argv: str) -> None:
    """Run a program of the system. Raises RuntimeError with its output if it is missing or fails."""
    program = shutil.which(argv[0], path=SYSTEM_PATH)
    if program is None:
        raise RuntimeError(f"There is no {argv[0]} on this machine; on Debian or Ubuntu: apt-get install {argv[0]}.")
    # A proxy that this machine needs, the program needs as well.
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    environment = plain_environment(**proxies)
    done = subprocess.run(  # noqa: S603  # argv of the lab's own making, no shell
        [program, *argv[1:]], check=False, capture_output=True, text=True, env=environment, timeout=500
    )
    if done.returncode:
        raise RuntimeError(f"{argv[0]} failed with code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")


def mirror() -> str:
    """Return the mirror from which this machine itself gets Debian's packages."""
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for place in places:
        if not place.is_file():
            continue
        for line in place.read_text().splitlines():
            # One line per source, or the fields of a stanza; a source may have options in brackets.
            found = re.match(r"\s*(?:deb\s+(?:\[[^]]*\]\s+)?|URIs:\s*)(\S*/(?:debian|ubuntu)/?)(?:\s|$)", line)
            if found:
                return found[1]
    raise RuntimeError("This machine's apt has no source of Debian's packages, so no host can be made of them.")
