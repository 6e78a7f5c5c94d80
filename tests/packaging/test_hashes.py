"""A bundle consists of wheels with known hashes only."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_MAKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import bundle
bundle.install(Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, "print('as it was published')\n")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"cargo==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    good = _make(tmp_path, requirements, "good")
    assert good.returncode == 0, good.stderr
    assert list((tmp_path / "good").glob("lib/python*/site-packages/cargo.py"))

    _wheel(tmp_path, "print('tampered with')\n")
    bad = _make(tmp_path, requirements, "bad")
    assert bad.returncode == 1
    assert "DO NOT MATCH THE HASHES" in bad.stderr
    assert "No bundle is made" in bad.stderr
    assert not list((tmp_path / "bad").glob("lib/python*/site-packages/cargo.py"))


def test_requirement_without_a_hash_is_refused(tmp_path: Path) -> None:
    _wheel(tmp_path, "")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("cargo==1.0\n")
    done = _make(tmp_path, requirements, "bare")
    assert done.returncode == 1
    assert "Hashes are required" in done.stderr


def _make(folder: Path, requirements: Path, name: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", _MAKE, str(ROOT / "packaging"), str(requirements), str(folder / name)]
    # No index and no cache: pip sees only the folder.
    environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_NO_CACHE_DIR": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, timeout=60)


def _wheel(folder: Path, code: str) -> Path:
    """Write a consistent wheel of one module, with a matching RECORD."""
    files = {
        "cargo.py": code,
        "cargo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: cargo\nVersion: 1.0\n",
        "cargo-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "cargo-1.0.dist-info/RECORD"
    path = folder / "cargo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
        sums = [f"{name},sha256={_sum(text)},{len(text)}\n" for name, text in files.items()]
        packed.writestr(record, "".join([*sums, f"{record},,\n"]))
    return path


def _sum(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
