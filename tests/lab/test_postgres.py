"""The private PostgreSQL: it keeps committed data across a crash, and never outlives its owner."""

import subprocess
import sys
from pathlib import Path

from moorage_lab.programs.pids import Pid
from moorage_lab.programs.postgres import PrivatePostgres

_STARTER = """\
import os, signal, sys
from pathlib import Path
from moorage_lab.programs.postgres import PrivatePostgres
PrivatePostgres(Path(sys.argv[1])).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_committed_data_survives_crash_under_same_url(engine_folder: Path) -> None:
    with PrivatePostgres(engine_folder / "crashing") as server:
        url = server.create_database("one")
        server.run("psql", "-d", url, "-c", "CREATE TABLE kept AS SELECT 42 AS number")
        server.crash()
        assert not server.answers()
        server.start()
        assert server.run("psql", "-At", "-d", url, "-c", "SELECT number FROM kept") == "42\n"


def test_postgres_ends_when_its_owner_is_killed(engine_folder: Path) -> None:
    folder = engine_folder / "orphaned"
    subprocess.run([sys.executable, "-c", _STARTER, str(folder)], check=False, timeout=60)
    left = Pid.read(folder / "postgres.pid")
    assert left is not None
    assert left.gone_within(10)
