"""Other users of the controller's machine can read nothing, whatever the umask and the existing modes."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacked_controller import attacked
from factories import make_settings
from moorage_controller import settings as settings_module


@pytest.fixture(autouse=True)
def _loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """Return the paths with any permission for group or others."""
    return [str(path) for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & 0o077]


async def test_loose_umask_exposes_no_file(tmp_path: Path) -> None:
    async with attacked(tmp_path, jwt_secret="", encryption_key="") as world:
        folder = world.settings.moorage_data_dir
        (await world.admin.post("/api/projects", {"name": "x"})).expect(201)
        names = {path.name for path in folder.iterdir()}
        assert {"moorage.db", "moorage.db-wal", "moorage.db-shm", "jwt_secret", "encryption_key"} <= names
        assert open_to_others(folder) == []


async def test_exposed_files_are_restricted_at_next_start(tmp_path: Path) -> None:
    async with attacked(tmp_path, jwt_secret="", encryption_key="") as world:
        folder = world.settings.moorage_data_dir
        (folder / "moorage.db.before-0001").touch()
        await world.stop()
        for path in (folder, *folder.iterdir()):
            path.chmod(0o777)
        theirs = folder / "somebody-s.txt"
        theirs.touch(0o644)
        await world.start()
        assert open_to_others(folder) == [str(theirs)]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_shared_folder_and_symlink_keep_their_mode(tmp_path: Path) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "moorage.db").touch(0o644)
    settings_module.prepare_data_dir(make_settings(shared))
    assert open_to_others(shared) == [str(shared)]
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    (tmp_path / "elsewhere").touch(0o644)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "moorage.db").symlink_to(tmp_path / "elsewhere")
    settings_module.prepare_data_dir(make_settings(tmp_path / "data"))
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o644
