"""Fixtures for the fleet tests: complete hosts that boot systemd, with sshd and their own Engine."""

import fcntl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from fleet_controller import OLD, Desk
from moorage_lab.hosts.host import Fleet
from moorage_lab.programs.engine import PrivateEngine

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ("common/moorage_common", "packaging")


@pytest.fixture(scope="session")
def fleet(engine: PrivateEngine, engine_folder: Path) -> Iterator[Fleet]:
    """Return a fleet without hosts; `add` makes some."""
    with Fleet(engine, engine_folder / "fleet", ROOT / ".cache" / "hosts") as made:
        yield made


@pytest.fixture(scope="session")
def bundles() -> Path:
    """Return the folder of two bundles of this tree: its own version, and OLD, which differs only in its name."""
    return bundles_of("agent", ("agent/moorage_agent",), [version("moorage-agent"), OLD])


@pytest.fixture(scope="session")
def controller_bundle(bundles: Path) -> Path:
    """Return the same folder, with a bundle of the controller as well."""
    sources = ("controller/moorage_controller", "migrations/moorage_migrations")
    assert bundles_of("controller", sources, [version("moorage-controller")]) == bundles
    return bundles


def bundles_of(program: str, sources: Sequence[str], releases: Sequence[str]) -> Path:
    """Build a program's bundles where they are older than their sources; return their folder."""
    dist = ROOT / ".cache" / "bundles"
    dist.mkdir(parents=True, exist_ok=True)
    with (dist / f"{program}.lock").open("w") as lock:
        # A parallel test run waits for it instead of building it again.
        fcntl.flock(lock, fcntl.LOCK_EX)
        places = (*sources, *_SOURCES)
        files = [path for place in places for path in (ROOT / place).rglob("*") if "__pycache__" not in path.parts]
        made = [path.stat().st_mtime for path in dist.glob(f"moorage-{program}-*.tar.gz")]
        if len(made) < len(releases) or min(made) < max(path.stat().st_mtime for path in files):
            argv = [sys.executable, str(ROOT / "packaging/bundle.py"), program, "--dist", str(dist), "--level", "1"]
            argv += ["--version", *releases]
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=400)
            assert done.returncode == 0, done.stderr[-3000:]
    return dist


@pytest.fixture(scope="module")
def desk(fleet: Fleet, bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Return a controller on this machine, with the bundles and the fleet's key."""
    made = Desk(tmp_path_factory.mktemp("desk"), fleet, bundles)
    made.start()
    yield made
    made.stop()
