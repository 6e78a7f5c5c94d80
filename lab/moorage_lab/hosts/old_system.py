"""An older system with an older C library, to run bundles on, as on users' hosts."""

import fcntl
import shutil
import tarfile
from contextlib import closing
from pathlib import Path

from moorage_lab.hosts.host_image import DISTRIBUTION_ID, mirror, run_tool
from moorage_lab.programs.engine import Engine

OLD_IMAGE = "moorage-old-system:local"

_SUITES = {"debian": "bullseye", "ubuntu": "focal"}
"""Both have glibc 2.31, and are on the mirror of the machine's own packages."""


def ensure_old_image(engine: Engine, cache: Path) -> str:
    """Import OLD_IMAGE into an Engine, making it first if not in `cache`; return its name. Takes half a minute.

    Raises RuntimeError if it can't be made.
    """
    suite = _SUITES.get(DISTRIBUTION_ID)
    if suite is None:
        raise RuntimeError(f"An older system can be made on Debian and Ubuntu alone, and this is {DISTRIBUTION_ID}.")
    cache.mkdir(parents=True, exist_ok=True)
    packed = cache / f"{suite}.tar"
    with (cache / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not packed.exists():
            _make(suite, cache / f"{suite}-root", packed)
    repository, tag = OLD_IMAGE.split(":")
    with closing(engine.client()) as client:
        client.api.timeout = 300
        client.api.import_image_from_file(str(packed), repository=repository, tag=tag, changes=['CMD ["/bin/sh"]'])
    return OLD_IMAGE


def _make(suite: str, root: Path, packed: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    # Unpacked but not configured: its programs and libraries run, in half the time.
    run_tool("debootstrap", "--foreign", "--variant=minbase", suite, str(root), mirror())
    shutil.rmtree(root / "var/cache/apt/archives")
    part = packed.with_suffix(".part")
    with tarfile.open(part, "w") as tar:
        tar.add(root, arcname=".")
    part.replace(packed)
    shutil.rmtree(root, ignore_errors=True)
