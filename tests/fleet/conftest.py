"""Whole hosts for tests: each boots systemd, with sshd and an Engine of its own."""

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from fleet_desk import OLD, Desk
from moorage_lab.engine import PrivateEngine
from moorage_lab.host import Fleet

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ("agent/moorage_agent", "common/moorage_common", "packaging")


@pytest.fixture(scope="session")
def fleet(engine: PrivateEngine, engine_folder: Path) -> Iterator[Fleet]:
    """Return a fleet without hosts; `add` makes some."""
    with Fleet(engine, engine_folder / "fleet", ROOT / ".cache" / "hosts") as made:
        yield made


@pytest.fixture(scope="session")
def bundles() -> Path:
    """Return the folder of two bundles made of this tree: its own version, and OLD, which differs by its name alone."""
    dist = ROOT / ".cache" / "bundles"
    dist.mkdir(parents=True, exist_ok=True)
    with (dist / "lock").open("w") as lock:
        # The other half of a test run waits for it rather than making it again.
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = [path for place in _SOURCES for path in (ROOT / place).rglob("*") if "__pycache__" not in path.parts]
        made = [path.stat().st_mtime for path in dist.glob("*.tar.gz")]
        if len(made) < 2 or min(made) < max(path.stat().st_mtime for path in files):
            argv = [sys.executable, str(ROOT / "packaging/bundle.py"), "agent", "--dist", str(dist), "--version"]
            done = subprocess.run(
                [*argv, version("moorage-agent"), OLD], capture_output=True, text=True, check=False, timeout=400
            )
            assert done.returncode == 0, done.stderr[-3000:]
    return dist


@pytest.fixture(scope="module")
def desk(fleet: Fleet, bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Return a controller of this machine, which has the bundles, and the fleet's key."""
    made = Desk(tmp_path_factory.mktemp("desk"), fleet, bundles)
    made.start()
    yield made
    made.stop()
