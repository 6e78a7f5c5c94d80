"""Wrap the agent's bundle as a Debian package: the same files, with the service's unit and what puts it in place.

The package's own copy lies in /usr/lib/moorage-agent; its scripts link it (hard, so that it costs nothing) to
/opt/moorage-agent/BUILD, the one place it runs from. dpkg would remove an old build's files during an upgrade, while
operations still run from them; so these it doesn't know.
"""

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from email.message import Message
from importlib.metadata import version
from pathlib import Path

from moorage_agent.policy import write_policy

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent / "deb"
NAME = "moorage-agent"
SCRIPTS = ("postinst", "prerm", "postrm")


def main() -> None:
    """Build into --dist of the bundle that is there, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the bundle is and the package goes")
    parser.add_argument("--version", default=version(NAME), help="whose bundle to wrap (default: its own)")
    given = parser.parse_args()
    bundle = given.dist / f"{NAME}-{given.version}-linux-x86_64.tar.gz"
    if not bundle.exists():
        sys.exit(f"There is no {bundle}: run `make agent-bundle` first.")
    root = ROOT / ".cache" / "agent-deb" / given.version
    shutil.rmtree(root, ignore_errors=True)
    moment = unpack(bundle, root)
    add_system_files(root, given.version, moment)
    describe(root, given.version)
    package = build(root, given.dist / f"{NAME}_{given.version}_amd64.deb", moment)
    print(f"{package}  {package.stat().st_size >> 20} MiB")


def unpack(bundle: Path, root: Path) -> int:
    """Unpack a bundle where the package keeps it, and return the time that it bears, in seconds since 1970."""
    place = root / "usr/lib"
    place.mkdir(parents=True)
    with tarfile.open(bundle) as tar:
        folder = tar.next()
        if folder is None:
            sys.exit(f"{bundle} is empty: make it again.")
        tar.extractall(place, filter="tar")
    (place / folder.name).rename(place / NAME)
    return int(folder.mtime)


def add_system_files(root: Path, release: str, moment: int) -> None:
    """Add what a package has beside its program: unit, link, a policy to begin with, and who may copy it."""
    units = root / "lib/systemd/system"
    shared, documents = root / "usr/share" / NAME, root / "usr/share/doc" / NAME
    for folder in (units, shared, documents, root / "usr/bin"):
        folder.mkdir(parents=True)
    shutil.copy(root / "usr/lib" / NAME / f"{NAME}.service", units)
    (root / "usr/bin" / NAME).symlink_to(f"/opt/{NAME}/current/{NAME}")
    # No conffile: enrolment writes this file, and dpkg would ask who changed it. See the scripts.
    write_policy(shared / "policy.toml", [])
    shutil.copy(SOURCES / "copyright", documents)
    changes = f"{NAME} ({release}) stable; urgency=medium\n\n  * See CHANGELOG.md of Moorage {release}.\n"
    with (documents / "changelog.gz").open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=moment) as packed:
        packed.write(changes.encode())


def describe(root: Path, release: str) -> None:
    """Write what dpkg wants to know."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum(-(-path.stat().st_size // 1024) for path in files)
    control = root / "DEBIAN"
    control.mkdir()
    fields = Message()
    fields["Package"] = NAME
    fields["Version"] = release
    fields["Section"] = "admin"
    fields["Priority"] = "optional"
    fields["Architecture"] = "amd64"
    fields["Depends"] = "systemd"
    fields["Recommends"] = "docker.io | docker-ce | moby-engine"
    fields["Maintainer"] = "Moorage maintainers <moorage@localhost.localdomain>"
    fields["Installed-Size"] = str(size)
    fields["Description"] = (
        "Docker Compose on this host, for a Moorage controller\n"
        " The agent runs what one controller asks for, below the directories that\n"
        " /etc/moorage-agent/policy.toml allows. Python, Docker Compose and a C library\n"
        " are inside. It serves once the host is enrolled: see moorage-agent enroll."
    )
    (control / "control").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    # dpkg's own choice, against accidents alone.
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
        for path in files
    ]
    (control / "md5sums").write_text("".join(sums))
    for script in SCRIPTS:
        shutil.copy(SOURCES / script, control)
        (control / script).chmod(0o755)


def build(root: Path, package: Path, moment: int) -> Path:
    """Let dpkg-deb pack it, with nothing in it of who built it and when."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    root.chmod(0o755)
    tool = shutil.which("dpkg-deb")
    if tool is None:
        sys.exit("There is no dpkg-deb on this machine: make the package on Debian or Ubuntu.")
    part = package.with_name(f".{package.name}.part")
    # gzip: what is inside is packed well already, and xz takes ten times as long for a fifth less.
    argv = [tool, "--root-owner-group", "-Zgzip", "-z6", "--build", str(root), str(part)]
    # dpkg-deb takes this time for whatever is newer.
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "SOURCE_DATE_EPOCH": str(moment)})
    part.replace(package)
    shutil.rmtree(root)
    return package


if __name__ == "__main__":
    main()
