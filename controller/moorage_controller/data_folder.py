"""The data folder's lock, for exclusive use of the SQLite database in it."""

import fcntl
import os
from collections.abc import Callable

from moorage_controller.errors import StartupError
from moorage_controller.settings import Settings


def lock(settings: Settings) -> Callable[[], None]:
    """Lock the data folder and return a function that unlocks it; with PostgreSQL this does nothing.

    Raises StartupError while another controller holds the lock.
    """
    if settings.sqlite_path is None:
        return lambda: None
    path = settings.moorage_data_dir / "controller.lock"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartupError(
            "data_dir",
            f"{path} can't be opened ({error.strerror}): run this as the user the data folder belongs to.",
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StartupError(
            "data_dir_in_use",
            f"Another controller works in {path.parent}: stop it, or set MOORAGE_DATA_DIR to another folder. "
            "Several controllers need PostgreSQL.",
        ) from None
    return lambda: os.close(descriptor)
