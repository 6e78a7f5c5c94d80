"""Live output of an operation, and resumption after a reader's connection is cut."""

import asyncio
from contextlib import suppress
from uuid import UUID

import aiohttp
import pytest
from factories import PATH, Api, World, add_app, add_operation
from fakes import FakeHost, Plan, settle
from moorage_common.docker.states import OperationKind
from moorage_controller.api.http import sse
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import output
from moorage_controller.store.tables.output import Piece
from moorage_lab.waiting import eventually_async
from sse_reader import listening

STARTED = b'{"id":"Container shop-web-1","status":"Done","text":"Started"}\n'


@pytest.fixture
async def host(world: World) -> FakeHost:
    """Return the one host, where nothing ends by itself."""
    found = (await world.new_host())[1]
    found.hold()
    return found


@pytest.fixture
async def operation_id(world: World, host: FakeHost) -> str:
    """Return a start in flight."""
    assert host.reachable
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    return await world.begin(await world.new_app(server["id"]))


async def test_output_lines_are_streamed_live_until_done_event(world: World, host: FakeHost, operation_id: str) -> None:
    async with listening(world.user, f"/api/operations/{operation_id}/output") as stream:
        first = await stream.next()
        assert first is not None
        assert (first.name, first.data) == ("message", f"Container {PATH} up")
        host.say(PATH, b"pulling\n" + STARTED)
        await world.clock.run(1)
        lines = [await stream.next(), await stream.next()]
        assert [line.data for line in lines if line] == ["pulling", "Container shop-web-1 Started"]
        host.let_go()
        await world.clock.run(1)
        (*_, done) = await stream.rest()
    assert done.name == "done"
    assert done.json == {**done.json, "id": operation_id, "state": "succeeded"}
    run = host.journal[UUID(operation_id)]
    assert int(done.id) == len(run.output), "the number of an event is the offset in bytes, as on the host"


async def test_reconnected_reader_resumes_after_last_line(world: World, host: FakeHost, operation_id: str) -> None:
    host.say(PATH, b"".join(b"line %d\n" % n for n in range(100)))
    host.let_go()
    await world.clock.run(1)
    path = f"/api/operations/{operation_id}/output"
    async with listening(world.user, path) as stream:
        everything = await stream.rest()
    assert [e.data for e in everything[1:-1]] == [f"line {n}" for n in range(100)]
    for n in (0, 17, 99, 100):
        async with listening(world.user, path, last_id=everything[n].id) as stream:
            assert await stream.rest() == everything[n + 1 :]
        async with listening(world.user, f"{path}?after={everything[n].id}") as stream:
            assert await stream.rest() == everything[n + 1 :]
    async with listening(world.user, f"{path}?after=3", last_id=everything[50].id) as stream:
        assert await stream.rest() == everything[51:], "what the browser itself sends counts more than the URL"
    async with listening(world.user, path, last_id="0; DROP TABLE") as stream:
        assert await stream.rest() == everything, "an id that was never given is none"


async def test_next_controller_continues_stored_output(world: World, host: FakeHost, operation_id: str) -> None:
    path = f"/api/operations/{operation_id}/output"
    async with (
        aiohttp.ClientSession() as session,
        listening(Api(session, world.user.url, world.user.token), path) as stream,
    ):
        seen = [await stream.next()]
        host.say(PATH, b"before\n")
        await world.clock.run(1)
        seen.append(await stream.next())
        assert seen[-1] is not None
        last_id = seen[-1].id
        await world.restart()
        assert await stream.next() is None, "a controller that ends lets its readers go"
    host.say(PATH, b"after\n")
    await world.clock.run(5)
    async with listening(world.user, path, last_id=last_id) as stream:
        resumed = await stream.next()
        assert resumed is not None
        assert resumed.data == "after"
        host.let_go()
        await world.clock.run(5)
        assert (await stream.rest())[-1].name == "done"
    shown = await world.operation(operation_id)
    assert shown["output"].splitlines() == [f"Container {PATH} up", "before", "after"]
    assert host.follows[-1] > 0, "what was kept isn't fetched from the host once more"


async def test_record_of_running_operation_shows_output_so_far(world: World, host: FakeHost, operation_id: str) -> None:
    host.say(PATH, b"half way\n")
    await world.clock.run(1)
    shown = await world.operation(operation_id)
    assert (shown["state"], shown["output"].splitlines()[-1]) == ("running", "half way")


@pytest.mark.parametrize(
    ("printed", "seen"),
    [
        (b"\x1b[31mred\x1b[0m and \x1b]0;title\x07plain\x07\n", ["red and plain"]),
        (b'time="2026-01-01" level=warning msg="a typo"\n', ['time="2026-01-01" level=warning msg="a typo"']),
        (b"{not json}\n[1, 2]\n", ["{not json}", "[1, 2]"]),
        (STARTED + STARTED + b"x\n" + STARTED, ["Container shop-web-1 Started", "x", "Container shop-web-1 Started"]),
        ("größe \N{SHIP}\n".encode() + b"\xff\xfe\0end\n", ["größe \N{SHIP}", "\N{REPLACEMENT CHARACTER}" * 2 + "end"]),
        (b"\n\r\n  \n", []),
        (b"never ended", ["never ended"]),
        (b"a" + "é".encode() * 40_000 + b"\n", ["a" + "é" * 32_767, "é" * (40_000 - 32_767)]),
        (b'Sure?{"id":"Container x","text":"Running"}\n', ["Sure?", "Container x Running"]),
        (b"copy 10%\rcopy 50%\rcopy 100%\n", ["copy 100%"]),
    ],
    ids=["escapes", "warning", "unknown", "twice", "bytes", "blank", "unended", "long", "asked", "progress"],
)
async def test_raw_compose_output_is_streamed_as_readable_lines(
    world: World, host: FakeHost, printed: bytes, seen: list[str]
) -> None:
    (server,) = (await world.admin.get("/api/servers")).expect(200)
    host.let_go()
    host.plans[OperationKind.UP] = Plan(output=printed)
    operation_id = await world.begin(await world.new_app(server["id"]))
    async with listening(world.user, f"/api/operations/{operation_id}/output") as stream:
        events = await stream.rest()
    assert [event.data for event in events[1:-1]] == seen
    assert int(events[-1].id) == len(host.journal[UUID(operation_id)].output)


async def test_output_beyond_10_mib_keeps_newest_and_reports_gap(
    world: World, host: FakeHost, operation_id: str
) -> None:
    line = b"%07d " + b"x" * 991 + b"\n"
    for n in range(0, 12_000, 200):
        host.say(PATH, b"".join(line % k for k in range(n, n + 200)))
        await world.clock.run(0.5)
    host.let_go()
    await world.clock.run(5)
    whole = len(host.journal[UUID(operation_id)].output)
    async with listening(world.user, f"/api/operations/{operation_id}/output") as stream:
        events = await stream.rest()
    gap, *lines, done = events
    assert gap.data.endswith("bytes of output are not kept and left out here]")
    assert int(done.id) == whole
    missing = int(gap.data.lstrip("[").split()[0])
    assert missing == int(gap.id)
    assert 10 << 20 <= whole - missing < (10 << 20) + 600_000
    assert lines[-1].data.startswith("0011999 ")
    numbers = [int(e.data.split()[0]) for e in lines[1:]]
    assert numbers == list(range(numbers[0], 12_000)), "behind the gap there is no other"


async def test_unknown_operation_is_refused_before_streaming(world: World) -> None:
    (await world.user.get(f"/api/operations/{UUID(int=1)}/output")).expect(404, "operation_not_found")
    (await world.user.get("/api/operations/nonsense/output")).expect(404)
    (await world.nobody.get(f"/api/operations/{UUID(int=1)}/output")).expect(401)


async def test_bad_offset_is_refused(world: World, operation_id: str) -> None:
    for wrong in ("-1", "x", "1e3", str(10**16)):
        (await world.user.get(f"/api/operations/{operation_id}/output?after={wrong}")).expect(422, "invalid_field")


async def test_reader_disconnect_changes_nothing(world: World, host: FakeHost, operation_id: str) -> None:
    async with listening(world.user, f"/api/operations/{operation_id}/output") as stream:
        await stream.next()
    host.say(PATH, b"goes on\n")
    host.let_go()
    await world.clock.run(5)
    shown = await world.operation(operation_id)
    assert (shown["state"], shown["output"].splitlines()[-1]) == ("succeeded", "goes on")


async def test_output_stored_by_two_controllers_is_kept_once(database: Database) -> None:
    operation = await add_operation(database, await add_app(database))
    pieces = [Piece(0, b"abc"), Piece(0, b"abcdef"), Piece(3, b"def"), Piece(2, b"c"), Piece(6, b"g")]
    for piece in pieces:
        async with database.write() as connection:
            await output.append(connection, operation.id, piece)
    async with database.read() as connection:
        assert await output.tail(connection, operation.id, 100) == b"abcdefg"
        assert await output.tail(connection, operation.id, 2) == b"fg"
        assert await output.length(connection, operation.id) == 7
        assert await output.after(connection, operation.id, 4) == Piece(4, b"ef")
        assert await output.after(connection, operation.id, 7) is None


async def test_database_outage_loses_no_output(
    world: World, host: FakeHost, operation_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = output.append, list[int]()

    async def refuse(*_: object) -> None:
        refused.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "append", refuse)
    host.say(PATH, b"while it was full\n")
    await world.clock.run(1)
    host.say(PATH, b"and once more\n")
    await world.clock.run(10)
    assert refused
    monkeypatch.setattr(output, "append", real)
    host.let_go()
    await world.clock.run(30)
    await settle()
    shown = await world.operation(operation_id)
    assert shown["state"] == "succeeded"
    assert shown["output"].splitlines() == [f"Container {PATH} up", "while it was full", "and once more"]
    assert host.commands == [(OperationKind.UP, PATH)]


async def test_logged_out_reader_is_disconnected(
    world: World, operation_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage_controller.api.http.sse._ADMIT_SECONDS", 0.05)
    admitted = 0
    admit_again = sse._Sending._admit_again

    async def counted(sending: sse._Sending) -> None:
        nonlocal admitted
        await admit_again(sending)
        admitted += 1

    monkeypatch.setattr(sse._Sending, "_admit_again", counted)
    async with listening(world.user, f"/api/operations/{operation_id}/output") as stream:
        await stream.next()
        await eventually_async(lambda: admitted >= 3, what="looks at whether the reader may listen still")
        assert not stream.response.content.at_eof()
        (await world.user.post("/api/auth/logout")).expect(200)
        assert await stream.next() is None


async def test_stalled_reader_is_disconnected(
    world: World, host: FakeHost, operation_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage_controller.api.http.sse._SEND_SECONDS", 0.3)
    host.say(PATH, b"".join(b"%07d %s\n" % (n, b"x" * 1000) for n in range(9_000)))
    host.let_go()
    await world.clock.run(5)
    path = f"/api/operations/{operation_id}/output"
    port = int(world.user.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.user.token}\r\n\r\n".encode())

    def streams() -> list[str]:
        return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == f"stream {path}"]

    await eventually_async(lambda: bool(streams()), what="the stream")
    await eventually_async(lambda: not streams(), what="the end of the stream")
    with suppress(ConnectionError):
        assert b"event: done" not in await reader.read()
    writer.close()
    assert (await world.operation(operation_id))["state"] == "succeeded"


def _on(session: aiohttp.ClientSession, world: World) -> Api:
    """Return the user's API client on a session that outlives the controller."""
    return Api(session, world.user.url, world.user.token)
