"""The systemd units, checked by systemd-analyze."""

import re
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"


@pytest.mark.parametrize(("name", "ceiling"), [("moorage-agent", 3.3), ("moorage-controller", 1.2)])
def test_unit_exposure_stays_below_its_ceiling(name: str, ceiling: float) -> None:
    argv = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(PACKAGING / f"{name}.service")]
    told = subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", told)
    assert found, told
    assert float(found[1]) <= ceiling


@pytest.mark.parametrize("name", ["moorage-agent", "moorage-controller"])
def test_unit_bounds_memory_tasks_and_files(name: str) -> None:
    lines = (PACKAGING / f"{name}.service").read_text().splitlines()
    for setting in ("MemoryMax=", "MemoryHigh=", "TasksMax=", "LimitNOFILE=65536"):
        assert any(line.startswith(setting) for line in lines), setting
