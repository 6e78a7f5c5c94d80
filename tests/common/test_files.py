"""Files that are written whole: what is on disk when that returns."""

import os
from pathlib import Path

import pytest
from moorage_common.files import write_atomic


def test_file_and_its_name_are_on_disk_when_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, [each.name for each in tmp_path.iterdir()]))

    monkeypatch.setattr(os, "fsync", recorded)
    write_atomic(tmp_path / "kept", b"content", mode=0o640)
    assert synced == [(".kept.part", [".kept.part"]), (tmp_path.name, ["kept"])]
    kept = tmp_path / "kept"
    assert (kept.read_bytes(), kept.stat().st_mode & 0o777) == (b"content", 0o640)
