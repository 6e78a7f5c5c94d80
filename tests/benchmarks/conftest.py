"""Fixtures for the benchmarks: an sshd to measure SSH with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.sshd import LabUser, PrivateSshd
from transport_rigs import remove_ssh_apps


@pytest.fixture(scope="module")
def sshd(engine: PrivateEngine, sample_image: str, short_folder: Path) -> Iterator[PrivateSshd]:
    """Return an sshd with the user `op`."""
    assert sample_image
    with PrivateSshd(short_folder / "benchmark-ssh", engine, [LabUser("op")]) as running:
        yield running
        remove_ssh_apps(running, engine)
