"""A real controller on a real PostgreSQL that crashes: the same process continues after its recovery."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.programs.postgres import PrivatePostgres
from moorage_lab.programs.processes import ProcessDiedError, installed
from moorage_lab.waiting import eventually

BACK_WITHIN = 5.0


@pytest.fixture
def server(engine_folder: Path) -> Iterator[PrivatePostgres]:
    """Return this test's own PostgreSQL, which it crashes."""
    with PrivatePostgres(engine_folder / "postgres-crashed") as private:
        yield private


@pytest.fixture
def controller(server: PrivatePostgres, tmp_path: Path) -> Iterator[ControllerProcess]:
    """Return a controller that was not started yet, on an empty database."""
    made = ControllerProcess(tmp_path, environment={"DATABASE_URL": server.create_database("moorage")})
    yield made
    if made.process.alive:
        made.terminate()


class Writer:
    """Creates projects one after another, and records the acknowledged ones."""

    def __init__(self, controller: ControllerProcess) -> None:
        self._api = controller.admin()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write, name="writer")
        self.acknowledged: list[str] = []
        self.refused: list[tuple[int, str]] = []

    def _write(self) -> None:
        while not self._stop.wait(0.01):
            reply = self._api.post("/api/projects", {"name": "written"})
            if reply.status == 201:
                self.acknowledged.append(reply.json["id"])
            else:
                self.refused.append((reply.status, reply.json["code"]))

    def wait_for(self, more: int) -> None:
        """Wait until so many more are acknowledged."""
        wanted = len(self.acknowledged) + more
        eventually(lambda: len(self.acknowledged) >= wanted, timeout=BACK_WITHIN, what=f"{more} more writes")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)


def test_database_crash_loses_no_acknowledged_write(server: PrivatePostgres, controller: ControllerProcess) -> None:
    with pytest.raises(ProcessDiedError, match="run `moorage-controller migrate` first"):
        controller.start()
    migrate = [installed("moorage-controller"), "migrate"]
    subprocess.run(migrate, env=controller.process.environment, check=True, timeout=60)  # no shell
    controller.start()
    process = controller.process.identity
    for _ in range(2):
        with Writer(controller) as writer:
            writer.wait_for(20)
            server.crash()
            eventually(lambda: controller.is_ready() is False, what="the controller to notice")
            assert controller.api().get("/healthz").status == 200
            ready = controller.api().get("/readyz")
            assert (ready.status, ready.json["problems"]) == (503, ["The database doesn't answer."])
            server.start()
            writer.wait_for(1)
            eventually(controller.is_ready, timeout=BACK_WITHIN, what="ready again")
        assert set(writer.refused) <= {(503, "database_unavailable")}
        listed = {row["id"] for row in controller.admin().get("/api/projects").expect(200)}
        assert set(writer.acknowledged) <= listed
    assert process.alive
