"""Whole hosts for tests: each boots systemd, with sshd and an Engine of its own."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_lab.engine import PrivateEngine
from moorage_lab.host import Fleet

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def fleet(engine: PrivateEngine, engine_folder: Path) -> Iterator[Fleet]:
    """Return a fleet without hosts; `add` makes some."""
    with Fleet(engine, engine_folder / "fleet", ROOT / ".cache" / "hosts") as made:
        yield made


@pytest.fixture(scope="session")
def bundle(engine_folder: Path) -> Path:
    """Return the agent's bundle, made of this tree."""
    made = _made("")
    return Path(shutil.copy(made, engine_folder / made.name))


@pytest.fixture(scope="session")
def other_bundle(engine_folder: Path) -> Path:
    """Return a bundle of another version."""
    made = _made("0.0.9")
    return Path(shutil.copy(made, engine_folder / made.name))


def _made(version: str) -> Path:
    """Make a bundle, the other half of a test run waiting for it rather than making it again."""
    dist = ROOT / ".cache" / f"bundle-{version or 'own'}"
    dist.mkdir(parents=True, exist_ok=True)
    with (dist / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = [*ROOT.glob("agent/moorage_agent/*"), *ROOT.glob("common/moorage_common/**/*"), *ROOT.glob("packaging/**/*")]
        newest = max(path.stat().st_mtime for path in sources if path.is_file() and path.suffix != ".pyc")
        found = next(iter(dist.glob("*.tar.gz")), None)
        if found is None or found.stat().st_mtime < newest:
            argv = [sys.executable, str(ROOT / "packaging/agent/bundle.py"), "--dist", str(dist)]
            done = subprocess.run(argv + (["--version", version] if version else []), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
        return next(iter(dist.glob("*.tar.gz")))
