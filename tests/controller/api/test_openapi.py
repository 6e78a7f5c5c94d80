"""The OpenAPI document: valid, complete, and with a page to try it."""

import base64
import hashlib
import re
from typing import Any

import pytest
from factories import World
from moorage_controller.api import schemas
from moorage_controller.api.admin import health
from moorage_controller.api.routes import ROUTES, Route
from moorage_controller.auth.roles import Role
from openapi_spec_validator import OpenAPIV31SpecValidator

SQLITE_ONLY = "what lies between the socket and the services asks no database"


async def read(world: World) -> Any:  # noqa: ANN401 - JSON
    return (await world.nobody.get("/api/openapi.json")).expect(200)


async def test_document_is_valid_and_covers_every_route(world: World) -> None:
    document = await read(world)
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()
    told = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert told == {(r.method, r.path) for r in ROUTES} | {("GET", "/api/openapi.json")}
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


async def test_each_route_documents_its_errors_as_problem_documents(world: World) -> None:
    document = await read(world)
    for route in ROUTES:
        replies = document["paths"][route.path][route.method.lower()]["responses"]
        expected = {"429", "500"}
        expected |= {"401", "403"} if route.role is not Role.NOBODY else set()
        expected |= {"404"} if "{id}" in route.path else set()
        expected |= {"400", "413", "415", "422"} if route.body else set()
        assert set(replies) >= expected, route.path
        for status in expected:
            assert list(replies[status]["content"]) == ["application/problem+json"]
    created = document["paths"]["/api/apps"]["post"]["responses"]
    assert "201" in created
    assert "200" not in created
    started = document["paths"]["/api/apps/{id}/start"]["post"]
    assert {"200", "202", "409", "502", "503", "504"} <= set(started["responses"])
    assert "Prefer" in {parameter["name"] for parameter in started["parameters"]}


async def test_route_that_requires_a_token_documents_it(world: World) -> None:
    document = await read(world)
    assert document["security"] == [{"bearer": []}]
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        assert operation.get("security") == ([] if route.role is Role.NOBODY else None)


async def test_docs_page_loads_nothing_external_and_satisfies_its_csp(world: World) -> None:
    reply = await world.nobody.get("/api/docs")
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/html")
    assert not re.search(r"(src|href)=|@import|url\(|https?://|\son[a-z]+=|style=", reply.text)
    policy = reply.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize(("method", "body"), [("POST", None), ("PUT", None), ("GET", schemas.NothingIn)])
def test_route_without_body_model_cannot_be_created(method: str, body: type[schemas.Schema] | None) -> None:
    with pytest.raises(TypeError, match="body model"):
        Route(method, "/x", Role.USER, health.healthz, schemas.HealthOut, body)
