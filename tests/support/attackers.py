"""Compromised hosts as separate programs: an agent, an Engine and an sshd with malicious replies.

Run as `python attackers.py agent|engine|sshd CONFIG`, a JSON file. An agent with `mode` `good` is an honest one whose
apps run, and that notes in `notes` when a stop of each arrives.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncssh
import grpc
from moorage_common.rpc.v1 import agent_pb2 as pb

ESCAPES = "\x1b]52;c;aGFoYQ==\x07\x1b[31m\u202e\x00\x9b2J"
_HUGE = ESCAPES + "A" * 3_900_000
_SECOND = 1.0


def container(cd_path: str, state: str, **more: Any) -> pb.Container:  # noqa: ANN401 - fields of a message
    """Return an honest container, or a malicious one."""
    name = cd_path.rsplit("/", 1)[-1]
    fields = {"id": f"{abs(hash(cd_path)):064x}", "name": f"{name}-web-1", "service": "web", "image": "web", **more}
    return pb.Container(state=state, **fields)


class Agent:
    """The RPCs, as bytes, so that they can be anything."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.mode: str = config["mode"]
        self._notes = Path(config["notes"])
        self._looks = time.monotonic_ns()
        self._running: dict[str, bool] = {}
        self._stopped: dict[str, str] = {}
        self._changed = threading.Condition()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the RPC handlers."""
        calls: dict[str, Callable[..., Any]] = {
            "GetInfo": self.info, "StartOperation": self.start, "CancelOperation": self.nothing,
            "SetDeadline": self.nothing, "GetApp": self.app, "ListProjects": self.projects,
            "PrepareRenewal": self.nothing,
        }  # fmt: skip
        streams: dict[str, Callable[..., Any]] = {
            "Watch": self.watch, "FollowOperation": self.follow, "Logs": self.logs,
        }  # fmt: skip
        kinds = {name: getattr(pb, f"{name}Request").FromString for name in (*calls, *streams)}
        found: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(call, kinds[name]) for name, call in calls.items()
        }
        found |= {name: grpc.unary_stream_rpc_method_handler(call, kinds[name]) for name, call in streams.items()}
        return grpc.method_handlers_generic_handler("moorage.agent.v1.Agent", found)

    def info(self, _request: object, _context: grpc.ServicerContext) -> bytes:
        """Return the host's facts."""
        return pb.GetInfoResponse(host=self._host()).SerializeToString()

    def nothing(self, _request: object, _context: grpc.ServicerContext) -> bytes:
        """Agree."""
        return b""

    def start(self, request: pb.StartOperationRequest, _context: grpc.ServicerContext) -> bytes:
        """Record the arrival of a stop, and stop."""
        path = request.app.cd_path
        with self._notes.open("a") as notes:
            notes.write(json.dumps([path, time.time(), request.kind]) + "\n")
        self._stopped[request.operation_id] = path
        with self._changed:
            self._running[path] = False
            self._changed.notify_all()
        return b""

    def follow(self, request: pb.FollowOperationRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Return the end immediately, or print endlessly."""
        after = request.after
        while self.mode == "output" and context.is_active():
            data = b"x" * 1_000_000
            yield pb.FollowOperationResponse(output=pb.Output(offset=after, data=data)).SerializeToString()
            after += len(data)
        path = self._stopped[request.operation_id]
        end = pb.End(end=pb.OPERATION_END_EXITED, observed=self._seen(path))
        yield pb.FollowOperationResponse(end=end).SerializeToString()

    def app(self, request: pb.GetAppRequest, _context: grpc.ServicerContext) -> bytes:
        """Show an app."""
        return pb.GetAppResponse(app=self._seen(request.app.cd_path)).SerializeToString()

    def projects(self, _request: object, _context: grpc.ServicerContext) -> bytes:
        """Show two million projects."""
        return b"\x0a\x00" * 1_900_000

    def watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Send everything, then changes."""
        paths = [app.cd_path for app in request.apps]
        for path in paths:
            self._running.setdefault(path, True)
        if self.mode == "items":
            yield b"\x0a" + _varint(3_900_002) + b"\x12" + _varint(3_900_000 - 3) + b"\x22\x00" * 1_949_998
        apps = [self._seen(path) for path in paths]
        yield pb.WatchResponse(snapshot=pb.Snapshot(host=self._host(), apps=apps)).SerializeToString()
        if self.mode in {"good", "logs", "output"}:
            yield from self._honest(paths, context)
        while context.is_active():
            for path in paths:
                yield self._change(path)

    def logs(self, _request: object, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Write endlessly; record when the caller disconnects."""
        line = pb.LogLine(time="2026-01-01T00:00:00.000000000Z", container="web-1", service="web", text="A" * 3_900_000)
        large = pb.LogsResponse(lines=[line]).SerializeToString()
        short = pb.LogLine(time=line.time, container=line.container, service=line.service, text=ESCAPES)
        many = pb.LogsResponse(lines=[short] * 1_900).SerializeToString()
        try:
            while context.is_active():
                yield large
                yield many
        finally:
            with self._notes.open("a") as notes:
                notes.write(json.dumps(["logs ended", time.time(), 0]) + "\n")

    def _honest(self, paths: list[str], context: grpc.ServicerContext) -> Iterator[bytes]:
        told = {path: self._running[path] for path in paths}
        while context.is_active():
            with self._changed:
                self._changed.wait(_SECOND)
            for path in paths:
                if not self._running[path] and not told[path]:
                    self._running[path] = True  # a manual restart
                if told[path] != self._running[path]:
                    told[path] = self._running[path]
                    yield pb.WatchResponse(app=self._seen(path)).SerializeToString()
            yield pb.WatchResponse(heartbeat=pb.Heartbeat()).SerializeToString()

    def _change(self, path: str) -> bytes:
        self._running[path] = not self._running[path]
        seen = self._seen(path)
        if self.mode == "texts":
            seen.problem_code, seen.problem = "compose_file_invalid", _HUGE
        return pb.WatchResponse(app=seen).SerializeToString()

    def _seen(self, path: str) -> pb.AppObservation:
        self._looks += 1
        state = "running" if self._running.get(path) else "exited"
        containers = [container(path, state)]
        return pb.AppObservation(cd_path=path, containers=containers, looked_at=self._looks, boot_id="boot")

    def _host(self) -> pb.Host:
        odd = ESCAPES if self.mode != "good" else ""
        return pb.Host(engine_reachable=True, running_containers=1, uptime=1 << 60, agent_version=f"1{odd}")


def agent(config: dict[str, Any]) -> None:
    """Serve an agent until killed."""
    # As many threads as streams: each stream holds one.
    server = grpc.server(ThreadPoolExecutor(64), handlers=[Agent(config).handlers()])
    key, certificate, ca = (Path(config[name]).read_bytes() for name in ("key", "certificate", "ca"))
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    server.add_secure_port(f"127.0.0.1:{config['port']}", credentials)
    server.start()
    server.wait_for_termination()


class Engine:
    """An Engine on a socket; `mode` selects its endless reply."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.mode: str = config["mode"]
        self._socket: str = config["socket"]
        self._labels = {
            "com.docker.compose.project": "shop",
            "com.docker.compose.project.working_dir": config["directory"],
            "com.docker.compose.service": "web",
        }

    async def serve(self) -> None:
        """Serve until killed."""
        os.umask(0)  # every login may use it
        server = await asyncio.start_unix_server(self._talk, self._socket)
        await server.serve_forever()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                async for part in self._answer(head.split(b" ")[1].decode()):
                    writer.write(part)
                    await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str) -> AsyncIterator[bytes]:
        about = {
            "Id": "c" * 64, "Name": "/shop-web-1", "RestartCount": 0,
            "Config": {"Labels": self._labels, "Image": "web", "Tty": True},
            "State": {
                "Status": "running", "ExitCode": 0, "StartedAt": "2026-01-01T00:00:00Z",
                "FinishedAt": "0001-01-01T00:00:00Z",
            },
        }  # fmt: skip
        if path.startswith("/events"):
            # Endless lines, or one endless line.
            yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            event = json.dumps({"Actor": {"ID": "c" * 64}}).encode() + b"\n"
            async for part in _endless(event if self.mode != "lines" else b"A" * 65536):
                yield part
        elif "/logs" in path:
            yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            async for part in _endless(b"A" * 65536 if "follow=0" in path else b"\n" * 65536, pause=False):
                yield part
        elif path.startswith("/info"):
            yield _whole({"SystemTime": "2026-01-01T00:00:00Z", "ServerVersion": f"1{ESCAPES}", "ContainersRunning": 1})
        elif path.startswith("/containers/json"):
            yield _whole([{"Id": "c" * 64, "State": "running"}])
        elif self.mode == "body":
            yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            async for part in _endless(b"[" * 65536, pause=False):
                yield part
        elif self.mode == "bomb":
            yield _whole([{}] * 600_000)
        else:
            yield _whole(about)


async def sshd(config: dict[str, Any]) -> None:
    """Serve SSH until killed: every session prints endlessly, on both streams."""

    async def print_on(process: asyncssh.SSHServerProcess[bytes]) -> None:
        while True:
            process.stdout.write(b"A" * 65536)
            await process.stdout.drain()

    class Server(asyncssh.SSHServer):
        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return bool(username and password)

    key = asyncssh.generate_private_key("ssh-ed25519")
    await asyncssh.create_server(
        Server, "127.0.0.1", config["port"], server_host_keys=[key], process_factory=print_on, encoding=None
    )
    await asyncio.Event().wait()


def _whole(answer: object) -> bytes:
    body = json.dumps(answer).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def _endless(data: bytes, *, pause: bool = True) -> AsyncIterator[bytes]:
    chunk = b"%x\r\n%s\r\n" % (len(data), data)
    while True:
        yield chunk
        if pause:
            await asyncio.sleep(0.0005)


def _varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[2]).read_text())
    if sys.argv[1] == "agent":
        agent(settings)
    else:
        asyncio.run(Engine(settings).serve() if sys.argv[1] == "engine" else sshd(settings))
