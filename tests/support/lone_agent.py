"""A real agent with the test in the controller's place: it enrols the agent, and calls it by gRPC."""

import asyncio
import json
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import grpc
import grpc.aio
from aiohttp import web
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.rpc.v1.agent_pb2_grpc import AgentStub
from moorage_common.tls import x509
from moorage_common.tls.join_token import JoinToken
from moorage_controller.pki.authority import Authority
from moorage_lab.programs.agent import AgentProcess
from moorage_lab.programs.engine import Engine
from moorage_lab.programs.processes import installed, plain_environment

UP, DOWN, RESTART = pb.OPERATION_KIND_UP, pb.OPERATION_KIND_DOWN, pb.OPERATION_KIND_RESTART
DIRECTORY_LABEL = "com.docker.compose.project.working_dir"
_CALL_SECONDS = 30.0


class Desk:
    """`/api/enroll` with a real authority, served from its own thread. `requests` holds the received bodies."""

    def __init__(self) -> None:
        self.authority, _ = Authority.create(datetime.now(UTC))
        self.requests: list[dict[str, str]] = []
        self.change: Callable[[dict[str, str]], object] = lambda answer: answer
        """Called with each answer: what it returns is sent, nothing at all where it returns None."""
        self.refusal: tuple[int, str] | None = None
        """Status and sentence of a problem to answer with."""
        self._tokens: dict[str, JoinToken] = {}
        self._names: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self.url = ""

    def start(self) -> "Desk":
        """Serve on a free port of 127.0.0.1."""
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)
        return self

    def stop(self) -> None:
        """End the server and its thread."""
        assert self._runner is not None
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def token(self, fingerprint: str | None = None) -> str:
        """Return a new join token; it names this authority, or the one given."""
        token = JoinToken.make(str(uuid4()), fingerprint or self.authority.fingerprint)
        self._tokens[token.id] = token
        return str(token)

    async def _serve(self) -> str:
        app = web.Application()
        app.router.add_post("/api/enroll", self._enroll)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def _enroll(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        if self.refusal is not None:
            status, sentence = self.refusal
            return web.json_response({"detail": sentence}, status=status, content_type="application/problem+json")
        token = self._tokens[body["token"].partition(".")[0]]
        assert body["token"] == token.proof(body["csr"], body["endpoint"], body["version"])
        name = self._names.setdefault(token.id, x509.agent_name(str(uuid4())))
        answer = self.change(
            {
                "certificate": self.authority.issue_agent(body["csr"].encode(), name, datetime.now(UTC)).decode(),
                "ca": self.authority.certificate_pem.decode(),
                "serverId": str(uuid4()),
                "agentName": name,
            }
        )
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(answer)


@dataclass(frozen=True)
class Done:
    """An ended operation: its output and its end."""

    operation_id: str
    raw: bytes
    end: pb.End

    @property
    def output(self) -> str:
        """The output, as text."""
        return self.raw.decode()


class Caller:
    """The agent's RPCs on one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = AgentStub(channel)

    async def start(
        self,
        kind: "pb.OperationKind.ValueType",
        directory: Path,
        last: pb.Project | None = None,
        operation_id: str | None = None,
    ) -> str:
        """Start an operation; returns its id."""
        operation_id = operation_id or str(uuid4())
        app = pb.App(cd_path=str(directory), last_project=last)
        request = pb.StartOperationRequest(operation_id=operation_id, kind=kind, app=app)
        await self.stub.StartOperation(request, timeout=_CALL_SECONDS)
        return operation_id

    async def follow(self, operation_id: str, after: int = 0) -> AsyncIterator[pb.FollowOperationResponse]:
        """Yield the received messages."""
        async for reply in self.stub.FollowOperation(
            pb.FollowOperationRequest(operation_id=operation_id, after=after), timeout=120
        ):
            yield reply

    async def finish(self, operation_id: str, after: int = 0) -> Done:
        """Follow an operation to its end; every batch must begin at the end of the previous one."""
        raw = b""
        async for reply in self.follow(operation_id, after):
            if reply.WhichOneof("content") == "end":
                assert reply.end.length == after + len(raw)
                return Done(operation_id, raw, reply.end)
            assert reply.output.offset == after + len(raw)
            raw += reply.output.data
        raise AssertionError("the stream ended without an end")

    async def run(self, kind: "pb.OperationKind.ValueType", directory: Path, last: pb.Project | None = None) -> Done:
        """Start an operation and follow it to its end."""
        return await self.finish(await self.start(kind, directory, last))

    async def cancel(self, operation_id: str) -> "pb.CancelOutcome.ValueType":
        """Cancel an operation."""
        request = pb.CancelOperationRequest(operation_id=operation_id, by="tester")
        return (await self.stub.CancelOperation(request, timeout=_CALL_SECONDS)).outcome

    @asynccontextmanager
    async def watch(self, *directories: Path) -> AsyncIterator["Watching"]:
        """Open a watch and read its snapshot."""
        call = self.stub.Watch(pb.WatchRequest(apps=[pb.App(cd_path=str(d)) for d in directories]))
        watching = Watching(call)
        try:
            await watching.read()
            yield watching
        finally:
            call.cancel()


@dataclass
class Watching:
    """The state received from a watch so far."""

    call: Any
    host: pb.Host = field(default_factory=pb.Host)
    apps: dict[str, pb.AppObservation] = field(default_factory=dict)

    async def read(self) -> None:
        """Apply the next message."""
        reply = await self.call.read()
        assert isinstance(reply, pb.WatchResponse), "the watch ended"
        match reply.WhichOneof("content"):
            case "snapshot":
                self.host = reply.snapshot.host
                self.apps = {app.cd_path: app for app in reply.snapshot.apps}
            case "host":
                self.host = reply.host
            case "app":
                self.apps[reply.app.cd_path] = reply.app

    async def until(self, right: Callable[[], bool], *, timeout: float = 15) -> None:  # noqa: ASYNC109  # tells what was seen
        """Read messages until a condition holds."""
        try:
            async with asyncio.timeout(timeout):
                while not right():
                    await self.read()
        except TimeoutError:
            raise AssertionError(f"not within {timeout} s; told so far: {self.host} {self.apps}") from None

    def states(self, directory: Path) -> dict[str, str]:
        """Return the Engine's container state for each service of an app."""
        return {c.service: c.state for c in self.apps[str(directory)].containers}


class LoneAgent:
    """An agent process, enrolled by a desk; `apps` is the directory its policy allows."""

    def __init__(self, folder: Path, engine: Engine, desk: Desk) -> None:
        self.folder = folder
        self.engine = engine
        self.desk = desk
        self.apps = folder / "apps"
        self.data = folder / "data"
        self.process = AgentProcess(folder, engine, allow_roots=[self.apps])
        self._identity = desk.authority.issue_controller(datetime.now(UTC))

    def start(self) -> "LoneAgent":
        """Enrol and start it."""
        self.apps.mkdir(parents=True)
        self.process.enroll(self.desk.url, self.desk.token())
        self.process.start()
        return self

    @property
    def name(self) -> str:
        """The name in its certificate."""
        return x509.dns_names((self.data / "pki" / "agent.pem").read_bytes())[0]

    def channel(self, identity: tuple[bytes, bytes] | None = None, ca: bytes | None = None) -> grpc.aio.Channel:
        """Open a channel as the controller, or with another certificate and key."""
        certificate, key = identity or self._identity
        credentials = grpc.ssl_channel_credentials(ca or self.desk.authority.certificate_pem, key, certificate)
        options = (("grpc.ssl_target_name_override", self.name), ("grpc.use_local_subchannel_pool", 1))
        return grpc.aio.secure_channel(self.process.address, credentials, options)

    @asynccontextmanager
    async def called(self) -> AsyncIterator[Caller]:
        """Call it as the controller."""
        async with self.channel() as channel:
            yield Caller(channel)

    def app(self, name: str, compose: str | None) -> Path:
        """Make an app's directory, with a compose file where one is given."""
        directory = self.apps / name
        directory.mkdir(parents=True)
        if compose is not None:
            (directory / "compose.yaml").write_text(compose)
        return directory

    def output_file(self, operation_id: str) -> Path:
        """Return the journal's output file of an operation."""
        return self.data / "operations" / operation_id / "out"

    def containers(self, directory: Path) -> dict[str, str]:
        """Query the Engine: name to state, for the containers of a directory or below it."""
        real = str(directory.resolve())
        rows = self._rows()
        return {row["Names"][0][1:]: row["State"] for row in rows if row["Labels"][DIRECTORY_LABEL].startswith(real)}

    def compose(self, directory: Path, *arguments: str) -> None:
        """Run Compose manually on the host."""
        compose(self.engine, directory, *arguments)

    def clear(self) -> None:
        """Remove all containers of the apps, including paused ones."""
        with_client = docker.APIClient(base_url=self.engine.host, version="auto")
        for row in self._rows():
            if row["Labels"][DIRECTORY_LABEL].startswith(str(self.apps)):
                with_client.remove_container(row["Id"], force=True)
        with_client.close()

    def _rows(self) -> Sequence[dict[str, Any]]:
        client = docker.APIClient(base_url=self.engine.host, version="auto")
        try:
            rows: list[dict[str, Any]] = client.containers(all=True, filters={"label": DIRECTORY_LABEL})
        finally:
            client.close()
        return rows


def compose(engine: Engine, directory: Path, *arguments: str) -> str:
    """Run Compose manually on the host; returns its output."""
    done = subprocess.run(
        [installed("docker-compose"), *arguments],
        cwd=directory,
        env=plain_environment(DOCKER_HOST=engine.host),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout


def code_of(error: grpc.aio.AioRpcError) -> str | None:
    """Return the error code of a refusal, None where there is none."""
    metadata: Any = error.trailing_metadata() or ()
    return next((str(value) for key, value in metadata if key == "moorage-code"), None)


def entries(output: str) -> list[dict[str, Any]]:
    """Return the JSON lines of an operation's output."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]
