"""The systemd units, checked by systemd-analyze."""

import re
import subprocess
from pathlib import Path

import pytest
from moorage_agent.apps import directory_reader

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


def test_agent_unit_has_room_for_all_questions_about_directories() -> None:
    found = re.search(r"^TasksMax=(\d+)$", (PACKAGING / "moorage-agent.service").read_text(), re.MULTILINE)
    assert found
    assert int(found[1]) >= directory_reader._MOST_OPEN + 256
