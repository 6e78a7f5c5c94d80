"""Live output of starts on a real host: thousands of lines, and from another controller."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from factories import Api
from moorage_lab.programs.controller import ControllerProcess
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.postgres import PrivatePostgres
from moorage_lab.programs.processes import installed
from moorage_lab.waiting import eventually_async
from running_stack import IMAGE, SLEEPER, SLOW, Stack
from sse_reader import Listener, listening

LINES = 20_000
READERS = 12
ASYNC = {"Prefer": "respond-async"}


@asynccontextmanager
async def watching(
    controller: ControllerProcess, token: str | None, path: str, after: str = ""
) -> AsyncIterator[Listener]:
    """Open a stream of a controller."""
    async with (
        aiohttp.ClientSession() as session,
        listening(Api(session, controller.url, token), path, after) as stream,
    ):
        yield stream


def begin(stack: Stack, app_id: str) -> str:
    """Begin a start; return the operation's id."""
    operation_id: str = stack.api.post(f"/api/apps/{app_id}/start", headers=ASYNC).expect(202)["id"]
    return operation_id


async def test_start_output_is_streamed_live(stack: Stack) -> None:
    app_id = await asyncio.to_thread(stack.make_app, "seen", SLOW)
    operation_id = await asyncio.to_thread(begin, stack, app_id)
    async with watching(stack.controller, stack.api.token, f"/api/operations/{operation_id}/output") as stream:
        while (event := await stream.next()) is not None and event.data != "Container seen-db-1 Waiting":
            pass
        assert stack.operation(operation_id)["state"] == "running", "it was seen before the end"
        rest = await stream.rest()
    assert "Container seen-web-1 Started" in [event.data for event in rest]
    assert rest[-1].json["state"] == "succeeded"
    (await asyncio.to_thread(stack.api.post, f"/api/apps/{app_id}/stop")).expect(200)


async def test_twenty_thousand_lines_arrive_completely_in_order(stack: Stack) -> None:
    words = "".join(f"${{MISSING_{n:05d}}}" for n in range(LINES))
    app_id = await asyncio.to_thread(stack.make_app, "talks", f'x-words: "{words}"\n{SLEEPER}')
    operation_id = await asyncio.to_thread(begin, stack, app_id)
    path = f"/api/operations/{operation_id}/output"
    async with watching(stack.controller, stack.api.token, path) as stream:
        events = await stream.rest()
    assert events[-1].json["state"] == "succeeded"
    warned = [event for event in events if "MISSING_" in event.data]
    numbers = [int(event.data.partition("MISSING_")[2][:5]) for event in warned]
    assert sorted(set(numbers)) == list(range(LINES))
    raw = (stack.journal(operation_id) / "out").read_bytes()
    assert int(events[-1].id) == len(raw)
    offsets = [int(event.id) for event in events]
    assert offsets == sorted(offsets)
    for event in (warned[0], warned[LINES // 2], warned[-1]):
        line = raw[: int(event.id)].rsplit(b"\n", 2)[-2]
        assert event.data.encode()[-40:] in line.replace(b"\\", b""), "the number of an event is where its line ends"
    async with watching(stack.controller, stack.api.token, path, warned[LINES // 2].id) as stream:
        rest = await stream.rest()
    assert rest == events[events.index(warned[LINES // 2]) + 1 :]
    (await asyncio.to_thread(stack.api.post, f"/api/apps/{app_id}/stop")).expect(200)


@pytest.fixture
def shared(postgres: PrivatePostgres, engine: PrivateEngine, sample_image: str, tmp_path: Path) -> Iterator[Stack]:
    """Return a controller on PostgreSQL with an agent, beside which another controller can be started."""
    assert sample_image == IMAGE
    secrets = {"JWT_SECRET": "j" * 40, "ENCRYPTION_KEY": "e" * 40}
    made = Stack(tmp_path, engine, {"DATABASE_URL": postgres.create_database(f"shared_{uuid4().hex}"), **secrets})
    migrate = [installed("moorage-controller"), "migrate"]
    subprocess.run(migrate, env=made.controller.process.environment, check=True, timeout=60)
    try:
        made.start()
        yield made
    finally:
        made.stop()


async def test_second_controller_streams_output_and_takes_over_operation(shared: Stack, tmp_path: Path) -> None:
    second = ControllerProcess(
        tmp_path / "second", admin_password=shared.controller.admin_password, environment=shared.environment
    )
    await asyncio.to_thread(second.start)
    try:
        app_id = await asyncio.to_thread(shared.make_app, "handed-over", SLOW, None, autoStopTimeout=7)
        operation_id = await asyncio.to_thread(begin, shared, app_id)
        path, token = f"/api/operations/{operation_id}/output", shared.api.token
        async with watching(shared.controller, token, path) as stream:
            seen = [await stream.next()]
            while seen[-1] is not None and not seen[-1].data.endswith("Waiting"):
                seen.append(await stream.next())
            assert seen[-1] is not None
            async with watching(second, token, path) as other:
                assert [await other.next() for _ in seen] == seen, "both show the same, by the same numbers"
            await asyncio.to_thread(shared.controller.kill)
        async with watching(second, token, path, seen[-1].id) as stream:
            rest = await stream.rest()
        assert rest[-1].json == {**rest[-1].json, "state": "succeeded", "exitCode": 0}
        assert int(rest[-1].id) == (shared.journal(operation_id) / "out").stat().st_size
        assert "Container handed-over-web-1 Started" in [event.data for event in rest]
        api = second.admin()
        app = api.get(f"/api/apps/{app_id}").expect(200)
        assert (app["status"], app["stopAt"] - app["startedAt"]) == ("running", 7 * 60_000)
        (await asyncio.to_thread(api.post, f"/api/apps/{app_id}/stop")).expect(200)
    finally:
        await asyncio.to_thread(second.process.terminate)


async def test_listeners_receive_changes_of_another_controller(shared: Stack, tmp_path: Path) -> None:
    second = ControllerProcess(tmp_path / "second", environment=shared.environment)
    await asyncio.to_thread(second.start)
    try:
        async with watching(second, shared.api.token, "/api/events") as stream:
            (ready,) = await stream.until("ready")
            app_id = await asyncio.to_thread(shared.make_app, "heard", SLEEPER)
            event = (await stream.until("app"))[-1]
            assert (event.json["id"], event.json["name"]) == (app_id, "heard")
        await asyncio.to_thread(shared.controller.kill)
        async with watching(second, shared.api.token, "/api/events", ready.id) as stream:
            (again,) = await stream.until("ready")
            assert again.json == {"resumed": True}
            assert (await stream.until("app"))[-1].json["name"] == "heard"
    finally:
        await asyncio.to_thread(second.process.terminate)


async def test_stalled_listeners_do_not_delay_others(stack: Stack) -> None:
    app_id = await asyncio.to_thread(stack.make_app, "held", SLEEPER)
    deaf = [await asyncio.open_connection("127.0.0.1", stack.controller.port, limit=1) for _ in range(20)]
    for _, writer in deaf:
        writer.write(f"GET /api/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.api.token}\r\n\r\n".encode())
    async with watching(stack.controller, stack.api.token, "/api/events") as stream:
        await stream.until("ready")
        for n in range(300):
            name = f"{n} {'x' * 240}"
            (await asyncio.to_thread(stack.api.put, f"/api/apps/{app_id}", {"name": name})).expect(200)
            while (event := (await stream.until("app"))[-1]).json["name"] != name:
                pass
        assert event.json["id"] == app_id
    for _, writer in deaf:
        writer.close()


async def test_followed_logs_leave_nothing_open_after_disconnect(stack: Stack) -> None:
    app_id = await asyncio.to_thread(
        stack.make_app, "logged", SLEEPER.replace("sleep 1000", "sh -c 'while sleep 0.2; do echo tick; done'")
    )
    (await asyncio.to_thread(stack.api.post, f"/api/apps/{app_id}/start")).expect(200)
    agent = stack.agent.process.identity
    assert agent is not None

    def sockets() -> int:
        count = 0
        for each in Path(f"/proc/{agent.id}/fd").iterdir():
            with suppress(FileNotFoundError):
                count += str(each.readlink()).startswith("socket:")
        return count

    before = sockets()
    async with AsyncExitStack() as readers:
        path = f"/api/apps/{app_id}/logs?follow=true&tail=0"
        for _ in range(READERS):
            stream = await readers.enter_async_context(watching(stack.controller, stack.api.token, path))
            event = await stream.next()
            assert event is not None
            assert event.data == "logged-web-1 | tick"
        assert sockets() >= before + READERS
    # Observations of the Engine may hold one or two connections.
    closed = before + READERS // 2
    await eventually_async(lambda: sockets() < closed, timeout=40, what="the agent's sockets closed")
    (await asyncio.to_thread(stack.api.post, f"/api/apps/{app_id}/stop")).expect(200)


def test_app_forbidden_by_host_policy_is_not_shown(stack: Stack) -> None:
    app_id = stack.make_app("elsewhere", None, Path("/etc"))
    for path in ("services", "logs"):
        reply = stack.api.get(f"/api/apps/{app_id}/{path}")
        assert reply.expect(403)["code"] == "path_not_allowed"
