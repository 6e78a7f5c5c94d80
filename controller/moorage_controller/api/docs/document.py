"""The OpenAPI document, and a page to read and try the API: one HTML file without external resources."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from moorage_controller.api.docs import openapi
from moorage_controller.api.http.call import Call
from moorage_controller.api.http.replies import Raw, Reply
from moorage_controller.api.routes import Route
from moorage_controller.auth.roles import Role

_PAGE = Path(__file__).with_name("docs.html")


class DocumentOut(BaseModel):
    """An OpenAPI 3.1 document."""

    model_config = ConfigDict(extra="allow")

    openapi: str


class IndexOut(BaseModel):
    """GET /: a sentence, and the URL of the API's page."""

    message: str
    docs: str


def routes(others: Sequence[Route]) -> tuple[Route, ...]:
    """Return the routes of the document, which includes itself, of the page, and of `/`."""

    async def openapi_json(call: Call) -> Reply:
        """GET /api/openapi.json: return this document."""
        del call
        return Reply(Raw(document, "application/json"))

    async def docs(call: Call) -> Reply:
        """GET /api/docs: return a page to read and try the API."""
        del call
        return Reply(Raw(page, "text/html"), headers={"Content-Security-Policy": policy})

    async def index(call: Call) -> Reply:
        """GET /: return the address of the API."""
        return Reply(IndexOut(message="Moorage's API is below /api.", docs=f"{call.services.base_url}/api/docs"))

    told = Route("GET", "/api/openapi.json", Role.NOBODY, openapi_json, DocumentOut)
    document = json.dumps(openapi.document((*others, told)), separators=(",", ":")).encode()
    page = _PAGE.read_bytes()
    policy = _policy(page.decode())
    return (
        told,
        Route("GET", "/api/docs", Role.NOBODY, docs, DocumentOut),
        Route("GET", "/", Role.NOBODY, index, IndexOut),
    )


def _policy(page: str) -> str:
    """Return a policy that allows only this page's script and style, by their hashes, and requests to its origin."""
    script, style = (_hash(page, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(page: str, tag: str) -> str:
    (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}'"
