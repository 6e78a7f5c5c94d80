"""SSH credentials appear nowhere: no reply, database, journal, log or command line."""

import asyncio
import base64
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import asyncssh
from moorage_common.clock import SystemClock
from moorage_controller.hosts.credentials import SshCredentials
from moorage_controller.services.fleet.credentials import Credentials
from moorage_controller.store.database.database import Database, sqlite_url
from moorage_controller.store.database.encryption import Keyring
from moorage_lab.api import Api, Reply
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.programs.processes import installed

PASSPHRASE = "Tr0ub4dor&3 correct horse"  # noqa: S105 - a test's
PASSWORD = 'a "quoted" password\\with / all & sorts'  # noqa: S105 - a test's
WRONG = "a passphrase that opens nothing"
KEY = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
PLAIN = KEY.export_private_key("pkcs8-pem").decode()
with warnings.catch_warnings(action="ignore"):
    LOCKED = KEY.export_private_key("openssh", PASSPHRASE, rounds=1).decode()


def forms(secret: bytes) -> Iterator[bytes]:
    """Yield the forms of a secret: plain, escaped, in hex, and in base64 at each of three positions."""
    yield secret
    escaped = secret.replace(b"\\", b"\\\\")
    yield escaped
    yield escaped.replace(b'"', b'\\"')
    yield secret.hex().encode()
    for before in range(3):
        # Without the ends, which depend on the neighbouring bytes.
        yield base64.b64encode(b"\0" * before + secret)[4:-4].rstrip(b"=")


def needles() -> dict[bytes, str]:
    """Return the searched texts, each with the name of its secret."""
    found: dict[bytes, str] = {}
    texts = {"the passphrase": PASSPHRASE, "the password": PASSWORD, "a wrong passphrase": WRONG}
    for name, text in texts.items():
        found |= dict.fromkeys(forms(text.encode()), name)
    for name, pem in {"the key": PLAIN, "the encrypted key": LOCKED}.items():
        body = pem.strip().splitlines()[1:-1]
        raw = base64.b64decode("".join(body))
        found |= dict.fromkeys((line.encode() for line in body if len(line) > 40), name)
        found |= dict.fromkeys(forms(raw[40:70]), name)
    return {**found, b"PRIVATE KEY-----": "any key"}


NEEDLES = needles()


def told(data: bytes) -> set[str]:
    """Return the names of the secrets in it, and of those whose bytes are in it in any form."""
    return {name for needle, name in NEEDLES.items() if needle in data}


def processes() -> bytes:
    """Return the command lines of all processes."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(place.read_bytes())
        except OSError:
            continue  # ended meanwhile
    return b"\n".join(found)


def files(folder: Path) -> dict[str, bytes]:
    """Return all bytes that the controller has written."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Listening(Api):
    """An API client that searches each reply, and all command lines at that time."""

    def request(self, *args: object, **kwargs: object) -> Reply:
        """Send a request, and search its reply."""
        reply = super().request(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they came
        assert told(repr((reply.json, reply.headers)).encode()) == set(), args
        assert told(processes()) == set(), args
        return reply


def _a_day_s_work(api: Api) -> list[str]:
    """Send secrets through every route, valid and invalid, and read all resources about servers."""
    new = {"name": "keyed", "address": "192.0.2.1", "sshUser": "root"}
    whole = {"sshPrivateKey": LOCKED, "sshPassphrase": PASSPHRASE, "sshPassword": PASSWORD}
    once = {"Idempotency-Key": "one"}
    first = api.post("/api/servers", {**new, **whole}, headers=once).expect(201)["id"]
    assert api.post("/api/servers", {**new, **whole}, headers=once).expect(201)["id"] == first
    second = api.post("/api/servers", {**new, "name": "later"}).expect(201)["id"]
    api.put(f"/api/servers/{second}", {"sshPrivateKey": PLAIN, "sshPassword": PASSWORD}).expect(200)
    paths = [f"/api/servers/{first}", f"/api/servers/{second}"]
    for bad in (
        {"sshPassphrase": WRONG},
        {"sshPrivateKey": LOCKED[:-90], "sshPassphrase": PASSPHRASE},
        {"sshPrivateKey": PASSWORD},
        {"sshPassword": f"{PASSWORD}\n{PASSPHRASE}"},
        {"sshPassword": [PASSWORD], "sshPrivateKey": {"pem": PLAIN}},
        {"sshPassword": PASSWORD, "name": PLAIN},
    ):
        api.put(paths[0], bad).expect(422)
    api.post("/api/servers", whole).expect(422)
    api.put("/api/servers/nothing", whole).expect(404)
    api.request("PUT", paths[0], whole, headers={"Content-Type": "text/plain"}).expect(415)
    Listening(api.url, "no.such.token").post("/api/servers", {**new, **whole}).expect(401)
    for path in paths:
        api.get(path).expect(200)
        api.get(f"{path}/status").expect(200)
        api.post(f"{path}/test").expect(200)
    api.post("/api/servers/refresh").expect(200)
    for path in ("servers", "audit-logs?limit=1000", "operations", "apps", "openapi.json"):
        api.get(f"/api/{path}").expect(200)
    return [first, second]


async def _stored(folder: Path, server_id: str) -> SshCredentials | None:
    database = Database(sqlite_url(folder / "moorage.db"), SystemClock())
    try:
        keyring = Keyring([(folder / "encryption_key").read_text().strip()])
        return (await Credentials(database, keyring).access_of(UUID(server_id))).credentials
    finally:
        await database.close()


def _controller(folder: Path) -> ControllerProcess:
    return ControllerProcess(folder, environment={"LOG_LEVEL": "debug", "RATE_LIMIT_PER_MINUTE": "0"})


def _listening(controller: ControllerProcess) -> Api:
    return Listening(controller.url, controller.admin().token)


def test_secret_search_finds_planted_secret() -> None:
    assert told(b"nothing in here") == set()
    for secret in (PASSPHRASE, PASSWORD, WRONG):
        for at in range(4):
            hidden = b"x" * at + secret.encode() + b"y" * at
            for written in (hidden, hidden.hex().encode(), base64.b64encode(hidden), repr(secret).encode()):
                assert len(told(written)) == 1, written
    assert told(PLAIN.encode()) == {"the key", "any key"}
    assert told(LOCKED.encode()) == {"the encrypted key", "any key"}
    assert told(base64.b64decode("".join(PLAIN.splitlines()[1:-1]))) == {"the key"}


def test_server_secrets_are_readable_nowhere(tmp_path: Path) -> None:
    with _controller(tmp_path) as controller:
        ids = _a_day_s_work(_listening(controller))
        while_it_runs = files(tmp_path)
        controller.kill()
        after_a_crash = files(tmp_path)
        controller.restart()
        api = _listening(controller)
        for path in ("/api/servers", "/api/audit-logs?limit=1000", f"/api/servers/{ids[0]}"):
            api.get(path).expect(200)
        backup = tmp_path / "backup"
        _run(controller, "backup", str(backup))
        controller.terminate()
        in_the_end = files(tmp_path)
    assert {"moorage.db", "moorage.db-wal", "controller.log"} <= set(while_it_runs)
    assert len(while_it_runs["moorage.db-wal"]) > 100_000, "the journal is looked at, too"
    assert b"/api/servers" in in_the_end["controller.log"]
    assert b"keyed" in in_the_end["moorage.db"]
    assert "backup" in in_the_end
    for when in (while_it_runs, after_a_crash, in_the_end):
        assert {name: told(data) for name, data in when.items() if told(data)} == {}
    kept = asyncio.run(_stored(tmp_path / "data", ids[0]))
    assert kept == SshCredentials(LOCKED, PASSPHRASE, PASSWORD), "and all of it was there all the time"


def test_generated_encryption_key_is_rotated_as_documented(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with _controller(tmp_path) as controller:
        server = {"name": "s", "address": "192.0.2.1", "sshPassword": PASSWORD}
        server_id = controller.admin().post("/api/servers", server).expect(201)["id"]
        controller.terminate()
        old = (data / "encryption_key").read_text().strip()
        shutil.move(data / "encryption_key", tmp_path / "old")
        controller.process.environment["ENCRYPTION_KEY_PREVIOUS"] = old
        controller.restart()
        assert (data / "encryption_key").read_text().strip() != old
        assert "anew: 2 of 2 secrets" in _run(controller, "rotate-key")
        assert "anew: 0 of 2 secrets" in _run(controller, "rotate-key")
        del controller.process.environment["ENCRYPTION_KEY_PREVIOUS"]
        controller.restart()
        assert asyncio.run(_stored(data, server_id)) == SshCredentials(password=PASSWORD)
        controller.admin().put(f"/api/servers/{server_id}", {"sshPrivateKey": PLAIN}).expect(200)


def _run(controller: ControllerProcess, *argv: str) -> str:
    """Run a command beside the controller, and return what it says."""
    done = subprocess.run(
        [installed("moorage-controller"), *argv],
        env=controller.process.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == os.EX_OK, done.stderr
    return done.stdout
