"""promtool, the checker of Prometheus rules: the installed one, or the one extracted from Debian's package."""

import fcntl
import shutil
import subprocess
from pathlib import Path

from moorage_lab.hosts.host_image import run_tool
from moorage_lab.programs.processes import SYSTEM_PATH


def promtool(cache: Path) -> str:
    """Return its path; download it into `cache` if it isn't installed. Raises RuntimeError if that fails.

    The package isn't installed, since that would start a Prometheus.
    """
    found = shutil.which("promtool", path=SYSTEM_PATH)
    if found is not None:
        return found
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / "root/usr/bin/promtool"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            run_tool("apt-get", "-qq", "update")
            fetched = subprocess.run(  # argv of the lab's own making, no shell
                ["/usr/bin/apt-get", "-qq", "download", "prometheus"],
                cwd=cache,
                check=False,
                capture_output=True,
                text=True,
                timeout=200,
            )
            packages = sorted(cache.glob("prometheus_*.deb"))
            if fetched.returncode or not packages:
                raise RuntimeError(f"Debian's prometheus can't be fetched: {fetched.stderr[-1000:]}")
            run_tool("dpkg-deb", "-x", str(packages[-1]), str(cache / "root"))
    return str(program)
