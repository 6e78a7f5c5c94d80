"""A list of 1,000 apps beside a plain handler on the same database, in turns. Prints numbers, asserts none."""

import asyncio
import http.client
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from benchmark_figures import tell
from factories import app_row, project_row, server_row
from fakes import FakeClock
from moorage_controller.store.database.database import Database, sqlite_url
from moorage_controller.store.database.migrate import migrate
from moorage_controller.store.tables import apps, projects, servers
from moorage_lab.hosts.network import free_port, listens
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.programs.processes import Process, plain_environment

_APPS = 1000
_ROUNDS = 60
_PLAIN = Path(__file__).parent / "plain_list.py"
_OK, _NOT_MODIFIED = 200, 304


class Caller:
    """One persistent connection, like a browser's."""

    def __init__(self, port: int, token: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._headers = {"Authorization": f"Bearer {token}"}

    def timed(self, wanted: int, etag: str = "") -> tuple[float, int, str]:
        """Request the list; return the duration (milliseconds), its length in bytes, and its ETag."""
        began = time.perf_counter()
        self._connection.request("GET", "/api/apps", headers=self._headers | ({"If-None-Match": etag} if etag else {}))
        reply = self._connection.getresponse()
        length = len(reply.read())
        took = (time.perf_counter() - began) * 1000
        assert reply.status == wanted
        return took, length, reply.headers.get("ETag", "")


def resident(process: Process) -> float:
    """Return the memory of a process, in MiB."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


async def fill(folder: Path) -> None:
    database = Database(sqlite_url(folder / "moorage.db"), FakeClock())
    await migrate(database)
    project, server = project_row(), server_row()
    async with database.write() as connection:
        await projects.add(connection, project)
        await servers.add(connection, server)
        for number in range(_APPS):
            url = "http://192.168.1.100:8080"
            row = app_row(project.id, server.id, name=f"app {number}", cd_path=f"/srv/{number}", app_url=url)
            await apps.add(connection, row)
    await database.close()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[ControllerProcess]:
    """Return a controller with 1,000 apps."""
    (tmp_path / "data").mkdir()
    asyncio.run(fill(tmp_path / "data"))
    with ControllerProcess(tmp_path, environment={"RATE_LIMIT_PER_MINUTE": "0"}) as running:
        yield running


@contextmanager
def plain(folder: Path) -> Iterator[tuple[Process, int]]:
    port = free_port()
    argv = [sys.executable, str(_PLAIN), str(folder / "data" / "moorage.db"), str(port)]
    process = Process("plain", argv, folder=folder, environment=plain_environment())
    process.start()
    try:
        process.wait_until(lambda: listens(port), timeout=10, what="the plain handler")
        yield process, port
    finally:
        process.terminate()


def test_list_of_1000_apps_beside_plain_handler(controller: ControllerProcess, tmp_path: Path) -> None:
    api = controller.admin()
    ours = Caller(controller.port, api.token or "")
    project = api.get("/api/projects").expect(200)[0]["id"]
    with plain(tmp_path) as (process, port):
        theirs = Caller(port)
        before = resident(controller.process), resident(process)
        took: dict[str, list[float]] = {"plain": [], "after a write": [], "again": [], "304": []}
        first = ours.timed(_OK)[0], theirs.timed(_OK)[0]
        for number in range(_ROUNDS):
            api.put(f"/api/projects/{project}", {"name": f"name {number}"}).expect(200)
            took["after a write"].append(ours.timed(_OK)[0])
            took["plain"].append(theirs.timed(_OK)[0])
            again, length, etag = ours.timed(_OK)
            took["again"].append(again)
            took["304"].append(ours.timed(_NOT_MODIFIED, etag)[0])
        after = resident(controller.process), resident(process)
    median = {name: statistics.median(values) for name, values in took.items()}
    tell(f"{_APPS} apps, {length} bytes; the first time: ours {first[0]:.1f} ms, plain {first[1]:.1f} ms")
    for name in ("after a write", "again", "304"):
        ratio = median[name] / median["plain"]
        tell(f"{name}: {median[name]:.2f} ms, plain: {median['plain']:.2f} ms, ratio {ratio:.2f}")
    for who, old, new in zip(("ours", "plain"), before, after, strict=True):
        tell(f"{who}: {old:.0f} MiB before, {new:.0f} MiB after")
    assert all(len(values) == _ROUNDS for values in took.values())
