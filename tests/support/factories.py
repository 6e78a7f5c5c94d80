"""Factories for tests: rows, an in-process controller on fake hosts, and a client of its API."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import aiohttp
import bcrypt
from fakes import EPOCH, FakeClock, FakeHost, FakeHosts, settle
from moorage_common.clock import Clock
from moorage_common.tls.join_token import JoinToken
from moorage_common.tls.x509 import new_key, signing_request
from moorage_controller.app import Controller
from moorage_controller.database import open_database
from moorage_controller.settings import Settings
from moorage_controller.store.database.database import Database
from moorage_controller.store.schema import metadata
from moorage_controller.store.tables import apps, audit, operations, projects, servers, users
from moorage_controller.store.tables.apps import App
from moorage_controller.store.tables.operations import Operation
from multidict import CIMultiDict
from sqlalchemy import text

ADMIN, USER = "admin", "operator"
PASSWORD = "correct horse battery staple"  # noqa: S105 - a test's
JWT_SECRET = "a-test-s-jwt-secret-0123456789abcdef"  # noqa: S105 - a test's
ENCRYPTION_KEY = "a-test-s-encryption-key-0123456789ab"
ENDPOINT = "10.0.0.1:7443"
PATH = "/srv/apps/shop"
LIMIT = 120
"""Seconds after which a test's start is stopped on its host."""
_CHEAP_HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
"""Checked as any other bcrypt hash is, in a millisecond."""


def user_row(username: str, role: str = "user", **changes: Any) -> users.User:  # noqa: ANN401 - any field
    """Return a user whose password is PASSWORD."""
    plain = users.User(
        id=uuid4(),
        username=username,
        password_hash=_CHEAP_HASH,
        role=role,
        email=None,
        full_name=None,
        is_active=True,
        last_login_at=None,
        created_at=EPOCH,
        updated_at=EPOCH,
    )
    return replace(plain, **changes)


def server_row(**changes: Any) -> servers.Server:  # noqa: ANN401 - any field
    """Return a server without an agent."""
    plain = servers.Server(
        id=uuid4(),
        name="Production Server 1",
        address="192.168.1.100",
        ssh_user=None,
        ssh_port=22,
        api_endpoint=None,
        status="offline",
        running_apps_count=0,
        last_checked=None,
        status_detail=None,
        running_containers=0,
        uptime=None,
        agent_name=None,
        agent_version=None,
        created_at=EPOCH,
        updated_at=EPOCH,
    )
    return replace(plain, **changes)


def project_row(**changes: Any) -> projects.Project:  # noqa: ANN401 - any field
    """Return a project."""
    return replace(projects.Project(uuid4(), "Shop", None, EPOCH, EPOCH), **changes)


def app_row(project_id: UUID, server_id: UUID, **changes: Any) -> App:  # noqa: ANN401 - any field
    """Return a stopped app without a run."""
    plain = App(
        id=uuid4(),
        name="QMS Backend",
        project_id=project_id,
        server_id=server_id,
        cd_path=PATH,
        app_url=None,
        auto_stop_timeout=60,
        status="stopped",
        started_at=None,
        domain="",
        health="unknown",
        observed_at=None,
        last_error=None,
        health_detail=None,
        last_result=None,
        project_name=None,
        project_directory=None,
        run_id=None,
        run_timeout=None,
        stop_at=None,
        run_began_at=None,
        deadline_number=0,
        warn_at=None,
        overdue=False,
        created_at=EPOCH,
        updated_at=EPOCH,
    )
    return replace(plain, **changes)


def operation_row(app: App, **changes: Any) -> Operation:  # noqa: ANN401 - any field
    """Return a start of an app, recorded and not sent yet."""
    plain = Operation(
        id=uuid4(),
        kind="up",
        app_id=app.id,
        server_id=app.server_id,
        actor_id=None,
        actor=ADMIN,
        run_id=uuid4(),
        run_timeout=60,
        created_at=EPOCH,
        deadline_at=EPOCH.replace(hour=EPOCH.hour + 1),
    )
    return replace(plain, **changes)


@dataclass(frozen=True)
class Reply:
    """A reply of the API; `text` is its body as it came."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - JSON is whatever the route replies
        """The body, read."""
        return json.loads(self.text)

    def expect(self, status: int, code: str | None = None) -> Any:  # noqa: ANN401 - as `json`
        """Return the body of a reply with that status, and with that problem code where one is given."""
        assert self.status == status, self.text
        body = self.json
        if code is not None:
            assert body["code"] == code, body
        return body


class Api:
    """A client of the API with one token."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str | None) -> None:
        self.session = session
        self.url = url
        self.token = token

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a body as JSON, or `data` unchanged. A streamed reply is not read: it may never end."""
        sent = dict(headers or {})
        if self.token is not None:
            sent.setdefault("Authorization", f"Bearer {self.token}")
        if data is not None or body is not None:
            sent.setdefault("Content-Type", "application/json")
        raw = json.dumps(body).encode() if body is not None else data
        async with self.session.request(method, self.url + path, data=raw, headers=sent) as response:
            text = "" if response.content_type == "text/event-stream" else await response.text()
            return Reply(response.status, CIMultiDict(response.headers), text)

    async def get(self, path: str, **headers: str) -> Reply:
        """GET a path; headers are named with underscores, here and below."""
        return await self.send("GET", path, headers=_dashed(headers))

    async def post(self, path: str, body: object = None, **headers: str) -> Reply:
        """POST a body as JSON, or none at all."""
        return await self.send("POST", path, body, headers=_dashed(headers))

    async def put(self, path: str, body: object, **headers: str) -> Reply:
        """PUT a body as JSON."""
        return await self.send("PUT", path, body, headers=_dashed(headers))

    async def delete(self, path: str) -> Reply:
        """DELETE a path."""
        return await self.send("DELETE", path)


def _dashed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def make_settings(folder: Path, **changes: object) -> Settings:
    """Return the settings of a controller on a free port, with its data in a folder."""
    plain: dict[str, object] = {
        "port": 0,
        "moorage_data_dir": folder,
        "jwt_secret": JWT_SECRET,
        "encryption_key": ENCRYPTION_KEY,
        "admin_password": PASSWORD,
        "public_url": "https://moorage.example.com",
        "operation_limit_minutes": LIMIT // 60,
        # Tests send requests faster than people do; tests of the limit set it.
        "rate_limit_per_minute": 0,
    }
    return Settings.model_validate({**plain, **changes})


class World:
    """A controller on fake hosts, with a clock that only tests move; it can be stopped and restarted."""

    def __init__(self, settings: Settings) -> None:
        self.clock = FakeClock()
        self.hosts = FakeHosts(self.clock)
        self.settings = settings
        self.nobody: Api
        self.admin: Api
        self.user: Api
        self._tokens: dict[str, str] = {}
        self._controller: Controller | None = None
        self._session: aiohttp.ClientSession | None = None
        self._made: Counter[str] = Counter()

    async def start(self, clock: Clock | None = None) -> Self:
        """Start the controller, and log both users in the first time; with another clock the database's time counts."""
        decides = clock is None
        made = Controller(self.settings, clock or self.clock, hosts=lambda *_: self.hosts, clock_decides=decides)
        self._controller = await made.__aenter__()
        self._session = aiohttp.ClientSession()
        url = f"http://{self._controller.address}"
        self.nobody = Api(self._session, url, None)
        for name in (ADMIN, USER):
            if name not in self._tokens:
                reply = await self.nobody.post("/api/auth/login", {"username": name, "password": PASSWORD})
                self._tokens[name] = reply.expect(200)["token"]
        self.admin = Api(self._session, url, self._tokens[ADMIN])
        self.user = Api(self._session, url, self._tokens[USER])
        return self

    async def stop(self) -> None:
        """Stop the controller; the hosts keep running."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._controller is not None:
            await self._controller.__aexit__(None, None, None)
            self._controller = None

    async def restart(self) -> None:
        """Stop the controller, and start it again on the same data."""
        await self.stop()
        await self.start()

    async def close(self) -> None:
        """End everything."""
        await self.stop()
        await self.hosts.close()

    def database(self) -> Database:
        """Open a second connection to the controller's database; close it after use."""
        return open_database(self.settings, self.clock, clock_decides=True)

    async def stored(self) -> bytes:
        """Return the database's contents for a search: SQLite's files, or PostgreSQL's rows as text."""
        if self.settings.sqlite_path is not None:
            return b"".join(path.read_bytes() for path in self.settings.moorage_data_dir.glob("moorage.db*"))
        database = self.database()
        async with database.read() as connection:
            names = [table.name for table in metadata.sorted_tables]
            rows = [row for name in names for row in await connection.execute(text(f"SELECT t::text FROM {name} t"))]  # noqa: S608 - our own names
        await database.close()
        return "\n".join(row[0] for row in rows).encode()

    async def new_server(self, **fields: object) -> str:
        """Create a server through the API; return its id."""
        body = {"name": "Production Server 1", "address": "192.168.1.100", **fields}
        server_id: str = (await self.admin.post("/api/servers", body)).expect(201)["id"]
        return server_id

    async def new_host(self, endpoint: str = ENDPOINT, **fields: object) -> tuple[str, FakeHost]:
        """Create a server, enrol a fake host for it with a join token, and wait until it is watched."""
        host = self.hosts.add(endpoint)
        server_id = await self.new_server(**fields)
        made = (await self.admin.post(f"/api/servers/{server_id}/enrollment-token")).expect(201)
        token = JoinToken.parse(made["token"])
        csr = signing_request(new_key(), "host").decode()
        proof = token.proof(csr, endpoint, "0.1.0")
        body = {"token": proof, "csr": csr, "endpoint": endpoint, "version": "0.1.0"}
        (await self.nobody.post("/api/enroll", body)).expect(200)
        await settle()
        return server_id, host

    async def new_app(self, server_id: str, **fields: object) -> str:
        """Create an app (and a project for it, where none is given) through the API; return its id."""
        project_id = fields.pop("projectId", None)
        if project_id is None:
            project_id = (await self.admin.post("/api/projects", {"name": "Shop"})).expect(201)["id"]
        made = self._made[server_id]
        self._made[server_id] += 1
        path = f"{PATH}-{made}" if made else PATH  # no two are in one directory
        body = {"name": "QMS Backend", "serverId": server_id, "projectId": project_id, "cdPath": path, **fields}
        app_id: str = (await self.admin.post("/api/apps", body)).expect(201)["id"]
        await settle()
        return app_id

    async def app(self, app_id: str) -> Any:  # noqa: ANN401 - JSON
        """Return an app as the API shows it now."""
        return (await self.admin.get(f"/api/apps/{app_id}")).expect(200)

    async def row(self, app_id: str) -> App:
        """Return an app's row."""
        database = self.database()
        try:
            async with database.read() as connection:
                found = await apps.get(connection, UUID(app_id))
        finally:
            await database.close()
        assert found is not None
        return found

    async def audit(self, *actions: str) -> list[Any]:
        """Return the audit entries of those actions as an admin sees them, the oldest first."""
        page = (await self.admin.get("/api/audit-logs?limit=1000")).expect(200)
        return [entry for entry in reversed(page["logs"]) if entry["action"] in actions]

    async def operation(self, operation_id: str) -> Any:  # noqa: ANN401 - JSON
        """Return an operation as the API shows it now."""
        return (await self.admin.get(f"/api/operations/{operation_id}")).expect(200)

    async def begin(self, app_id: str, verb: str = "start", body: object = None) -> str:
        """Begin a start, stop or restart without waiting for its end; return the operation's id."""
        reply = await self.admin.post(f"/api/apps/{app_id}/{verb}", body, Prefer="respond-async")
        operation_id: str = reply.expect(202)["id"]
        await settle()
        return operation_id


async def add_users(database: Database) -> None:
    """Create the admin and the plain user that a World logs in."""
    async with database.write() as connection:
        await users.add(connection, user_row(ADMIN, "admin"))
        await users.add(connection, user_row(USER))


async def add_app(database: Database, **changes: Any) -> App:  # noqa: ANN401 - any field
    """Store a project, a server and an app on it."""
    project, server = project_row(), server_row()
    app = app_row(project.id, server.id, **changes)
    async with database.write() as connection:
        await projects.add(connection, project)
        await servers.add(connection, server)
        await apps.add(connection, app)
    return app


async def add_operation(database: Database, app: App, **changes: Any) -> Operation:  # noqa: ANN401 - any field
    """Store an operation on an app."""
    operation = operation_row(app, **changes)
    async with database.write() as connection:
        await operations.add(connection, operation)
    return operation


def audit_row(user_id: UUID | None, moment: datetime, action: str = "CREATE") -> audit.AuditEntry:
    """Return an audit entry of a user."""
    return audit.AuditEntry(
        id=uuid4(),
        user_id=user_id,
        username="somebody",
        action=action,
        resource_type="app",
        resource_id=uuid4(),
        resource_name="x",
        message="Something was done.",
        details=None,
        ip_address="127.0.0.1",
        user_agent="test",
        created_at=moment,
    )
