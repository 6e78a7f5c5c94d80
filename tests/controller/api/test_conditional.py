"""Conditional requests: ETag, 304, pages, and never a stale list."""

import asyncio

import pytest
from factories import ADMIN, World, project_row
from moorage_controller.services.fleet.projects import Projects
from moorage_controller.store.tables import projects
from sqlalchemy import text


@pytest.mark.parametrize("path", ["/api/projects", "/api/servers", "/api/apps", "/api/operations", "/api/audit-logs"])
async def test_unchanged_list_returns_304_with_its_headers(world: World, path: str) -> None:
    first = await world.user.get(path)
    etag = first.headers["ETag"]
    again = await world.user.get(path, If_None_Match=etag)
    assert (again.status, again.text) == (304, "")
    assert again.headers["ETag"] == etag
    assert "no-cache" in again.headers["Cache-Control"]
    for sent in (f"W/{etag}", f'"x", {etag}', "*"):
        assert (await world.user.get(path, If_None_Match=sent)).status == 304
    for sent in ('"x"', etag.strip('"'), ""):
        assert (await world.user.get(path, If_None_Match=sent)).expect(200) == first.json


async def test_etag_of_resource_changes_with_it(world: World) -> None:
    made = (await world.admin.post("/api/projects", {"name": "a"})).expect(201)
    path = f"/api/projects/{made['id']}"
    etag = (await world.user.get(path)).headers["ETag"]
    assert (await world.user.get(path, If_None_Match=etag)).status == 304
    (await world.admin.put(path, {"name": "b"})).expect(200)
    assert (await world.user.get(path, If_None_Match=etag)).expect(200)["name"] == "b"
    (await world.admin.delete(path)).expect(200)
    (await world.user.get(path, If_None_Match=etag)).expect(404)


async def test_conditional_request_requires_a_token(world: World) -> None:
    etag = (await world.user.get("/api/projects")).headers["ETag"]
    (await world.nobody.get("/api/projects", If_None_Match=etag)).expect(401)


async def test_acknowledged_write_is_in_next_list_under_load(world: World) -> None:
    acknowledged: set[str] = set()
    done = asyncio.Event()

    async def write(worker: int) -> None:
        for number in range(15):
            made = await world.admin.post("/api/projects", {"name": f"{worker}-{number}"})
            acknowledged.add(made.expect(201)["id"])

    async def read() -> int:
        reads = 0
        while not done.is_set():
            known = set(acknowledged)
            listed = {row["id"] for row in (await world.user.get("/api/projects")).expect(200)}
            assert known <= listed
            reads += 1
        return reads

    readers = [asyncio.create_task(read()) for _ in range(3)]
    await asyncio.gather(*(write(worker) for worker in range(4)))
    done.set()
    assert sum(await asyncio.gather(*readers)) > 10
    assert len((await world.user.get("/api/projects")).json) == 60


async def test_unchanged_list_is_read_from_database_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    real = Projects.all

    async def counting(self: Projects) -> object:
        nonlocal reads
        reads += 1
        return await real(self)

    monkeypatch.setattr(Projects, "all", counting)
    for _ in range(5):
        (await world.user.get("/api/projects")).expect(200)
    assert reads == 1
    (await world.admin.get("/api/projects")).expect(200)
    (await world.user.get("/api/projects?limit=1")).expect(200)
    assert reads == 3
    await world.admin.post("/api/projects", {"name": "new"})
    assert [p["name"] for p in (await world.user.get("/api/projects")).json] == ["new"]


async def test_write_by_other_process_invalidates_the_list(world: World) -> None:
    assert (await world.user.get("/api/projects")).expect(200) == []
    database = world.database()
    async with database.write() as connection:
        await projects.add(connection, project_row(name="beside"))
    assert [p["name"] for p in (await world.user.get("/api/projects")).json] == ["beside"]
    async with database.write() as connection:
        await connection.execute(text("DELETE FROM projects"))
    await database.close()
    assert (await world.user.get("/api/projects")).expect(200) == []


async def test_page_is_a_slice_with_total_count(world: World) -> None:
    for name in "cabd":
        (await world.admin.post("/api/projects", {"name": name})).expect(201)

    async def names(query: str) -> tuple[str, str]:
        reply = await world.user.get(f"/api/projects{query}")
        return "".join(p["name"] for p in reply.expect(200)), reply.headers["X-Total-Count"]

    assert await names("") == ("abcd", "4")
    assert await names("?limit=2") == ("ab", "4")
    assert await names("?limit=2&offset=3") == ("d", "4")
    assert await names("?offset=9") == ("", "4")
    for query in ("limit=0", "limit=x", "limit=1001", "offset=-1"):
        (await world.user.get(f"/api/projects?{query}")).expect(422, "invalid_field")


async def test_uncached_resource_has_no_etag(world: World) -> None:
    server_id = await world.new_server()
    for path in ("/api/auth/verify", f"/api/servers/{server_id}/status", "/healthz"):
        reply = await world.admin.get(path)
        assert "ETag" not in reply.headers
        assert reply.headers["Cache-Control"] == "no-store"
    assert (await world.admin.get("/api/auth/verify")).json["user"]["username"] == ADMIN
