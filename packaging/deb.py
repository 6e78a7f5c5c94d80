"""Wrap a program's bundle as a Debian package: the same files, with units and maintainer scripts.

The agent's own copy is in /usr/lib/moorage-agent; its scripts make hard links, which need no space, in
/opt/moorage-agent/BUILD, the only place it runs from. dpkg would remove an old build's files during an upgrade, while
operations still run from them; so dpkg doesn't own those. The controller runs where dpkg puts it: none of its processes
outlives its service.
"""

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.utils import formatdate
from importlib.metadata import version
from pathlib import Path

from moorage_agent.apps.policy import write_policy

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Path(__file__).resolve().parent
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
UNITS = "lib/systemd/system"
MAINTAINER = "Moorage maintainers <moorage@localhost.localdomain>"


@dataclass(frozen=True, slots=True)
class Package:
    """A package: its control fields, and the function that adds its files besides the program.

    `conffiles` are its files in /etc that the admin may change.
    """

    name: str
    fields: Mapping[str, str]
    add: Callable[[Path, Path], None]
    conffiles: Sequence[str] = ()


def main() -> None:
    """Build into --dist from an existing bundle, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=sorted(PACKAGES))
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where bundles are and the package goes")
    parser.add_argument("--version", help="the package's (default: the program's own)")
    parser.add_argument("--bundle", type=Path, help="the bundle to wrap (default: of that version, in --dist)")
    parser.add_argument("--level", type=int, default=6, help="gzip's, 1 to 9 (default: 6)")
    given = parser.parse_args()
    package = PACKAGES[given.program]
    release = given.version or version(package.name)
    bundle = given.bundle or given.dist / f"{package.name}-{release}-linux-x86_64.tar.gz"
    if not bundle.exists():
        sys.exit(f"There is no {bundle}: run `make bundles` first.")
    root = ROOT / ".cache" / f"{package.name}-deb" / release
    shutil.rmtree(root, ignore_errors=True)
    moment = unpack(bundle, root, package.name)
    package.add(root, given.dist)
    add_documents(root, package.name, release, moment)
    describe(root, package, release)
    built = build(root, given.dist / f"{package.name}_{release}_amd64.deb", moment, given.level)
    print(f"{built}  {built.stat().st_size >> 20} MiB")


def unpack(bundle: Path, root: Path, name: str) -> int:
    """Unpack a bundle into the package's place, and return its modification time, in epoch seconds."""
    place = root / "usr/lib"
    place.mkdir(parents=True)
    with tarfile.open(bundle) as tar:
        folder = tar.next()
        if folder is None:
            sys.exit(f"{bundle} is empty: make it again.")
        tar.extractall(place, filter="tar")
    (place / folder.name).rename(place / name)
    return int(folder.mtime)


def add_agents_files(root: Path, dist: Path) -> None:
    """Add the unit, the symlink to the program, and an initial policy."""
    del dist
    _copy(root / "usr/lib/moorage-agent/moorage-agent.service", root / UNITS)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/moorage-agent").symlink_to("/opt/moorage-agent/current/moorage-agent")
    # Not a conffile: enrolment writes this file, and dpkg would ask about the change. See the scripts.
    shared = root / "usr/share/moorage-agent"
    shared.mkdir(parents=True)
    write_policy(shared / "policy.toml", [])


def add_controllers_files(root: Path, dist: Path) -> None:
    """Add units, the user, the commands, the logrotate file, and the agent that it installs on hosts."""
    sources, program = SOURCES / "controller", root / "usr/lib/moorage-controller"
    for unit in ("moorage-controller.service", "moorage-controller-backup.service", "moorage-controller-backup.timer"):
        _copy(SOURCES / unit, root / UNITS)
    _copy(sources / "nightly-backup", program, program=True)
    _copy(sources / "moorage-controller", root / "usr/bin", program=True)
    _copy(sources / "sysusers.conf", root / "usr/lib/sysusers.d", "moorage-controller.conf")
    _copy(sources / "logrotate", root / "etc/logrotate.d", "moorage-controller")
    shared = root / "usr/share/moorage-controller"
    _copy(sources / "environment", shared)
    for name in ("rules.yaml", "dashboard.json"):
        _copy(SOURCES / "monitoring" / name, shared)
    agent = dist / f"moorage-agent-{version('moorage-agent')}-linux-x86_64.tar.gz"
    if not agent.exists():
        sys.exit(f"There is no {agent}, which the controller installs on hosts: run `make bundles` first.")
    _copy(agent, shared, "moorage-agent.tar.gz")
    for page in ("README.md", "SETTINGS.md"):
        _copy(SOURCES / page, root / "usr/share/doc/moorage-controller")


PACKAGES = {
    "agent": Package(
        name="moorage-agent",
        fields={
            "Recommends": "docker.io | docker-ce | moby-engine",
            "Description": "Docker Compose on this host, for a Moorage controller\n"
            " The agent runs what one controller asks for, below the directories that\n"
            " /etc/moorage-agent/policy.toml allows. Python, Docker Compose and a C library\n"
            " are inside. It serves once the host is enrolled: see moorage-agent enroll.",
        },
        add=add_agents_files,
    ),
    "controller": Package(
        name="moorage-controller",
        fields={
            "Suggests": "postgresql, logrotate, moorage-agent",
            "Description": "Docker Compose apps on many hosts, each stopped when its time is over\n"
            " The controller serves Moorage's REST API, keeps its data in SQLite or\n"
            " PostgreSQL, and stops each app when its time is over. Python and a C library\n"
            " are inside, and the agent that it installs on Docker hosts.",
        },
        add=add_controllers_files,
        conffiles=("/etc/logrotate.d/moorage-controller",),
    ),
}


def add_documents(root: Path, name: str, release: str, moment: int) -> None:
    """Add the copyright file and the changelog."""
    documents = root / "usr/share/doc" / name
    _copy(SOURCES / name.removeprefix("moorage-") / "deb/copyright", documents)
    changes = (
        f"{name} ({release}) stable; urgency=medium\n\n  * See CHANGELOG.md of Moorage {release}.\n\n"
        f" -- {MAINTAINER}  {formatdate(moment)}\n"
    )
    with (documents / "changelog.gz").open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=moment) as packed:
        packed.write(changes.encode())


def describe(root: Path, package: Package, release: str) -> None:
    """Write dpkg's control files."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum(-(-path.stat().st_size // 1024) for path in files)
    control = root / "DEBIAN"
    control.mkdir()
    fields = Message()
    fields["Package"] = package.name
    fields["Version"] = release
    fields["Section"] = "admin"
    fields["Priority"] = "optional"
    fields["Architecture"] = "amd64"
    fields["Depends"] = "systemd"
    fields["Maintainer"] = MAINTAINER
    fields["Installed-Size"] = str(size)
    for name, value in package.fields.items():
        fields[name] = value
    (control / "control").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    # dpkg's own format, only against accidental corruption.
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
        for path in files
        if f"/{path.relative_to(root)}" not in package.conffiles
    ]
    (control / "md5sums").write_text("".join(sums))
    if package.conffiles:
        (control / "conffiles").write_text("".join(f"{path}\n" for path in package.conffiles))
    scripts = SOURCES / package.name.removeprefix("moorage-") / "deb"
    for script in SCRIPTS:
        if (scripts / script).exists():
            _copy(scripts / script, control, program=True)


def build(root: Path, package: Path, moment: int, level: int) -> Path:
    """Pack it with dpkg-deb, reproducibly, without the builder's user and time."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    root.chmod(0o755)
    tool = shutil.which("dpkg-deb")
    if tool is None:
        sys.exit("There is no dpkg-deb on this machine: make the package on Debian or Ubuntu.")
    part = package.with_name(f".{package.name}.part")
    # gzip: the content is compressed already, and xz takes ten times as long for a fifth less.
    argv = [tool, "--root-owner-group", "-Zgzip", f"-z{level}", "--build", str(root), str(part)]
    # dpkg-deb clamps newer modification times to this time.
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "SOURCE_DATE_EPOCH": str(moment)})
    part.replace(package)
    shutil.rmtree(root)
    return package


def _copy(source: Path, folder: Path, name: str = "", *, program: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (name or source.name)
    shutil.copyfile(source, target)
    target.chmod(0o755 if program else 0o644)


if __name__ == "__main__":
    main()
