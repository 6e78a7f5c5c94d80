"""Conditional requests: ETag, If-None-Match and 304 (RFC 9110), and a cache of lists."""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from moorage_controller.store.database.version import DatabaseVersion

_MOST_KEPT = 1024
_LONGEST_PATH = 512
"""Maximum length of a cached path with its query, in characters."""
_MOST_BYTES = 32 * 1024 * 1024
_LARGEST = 8 * 1024 * 1024

Make = Callable[[], Awaitable[web.Response]]


@dataclass(frozen=True, slots=True)
class _Kept:
    revision: str
    headers: dict[str, str]


class _Bodies:
    """LRU cache of bodies by ETag, which stores equal lists of many callers once."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[str, bytes] = OrderedDict()
        self.size = 0
        """In bytes."""

    def get(self, etag: str) -> bytes | None:
        body = self._bodies.get(etag)
        if body is not None:
            self._bodies.move_to_end(etag)
        return body

    def put(self, etag: str, body: bytes) -> None:
        if self.get(etag) is not None or len(body) > _LARGEST:
            return
        self._bodies[etag] = body
        self.size += len(body)
        while self.size > _MOST_BYTES:
            _, oldest = self._bodies.popitem(last=False)
            self.size -= len(oldest)


class Conditional:
    """Adds an ETag, a hash of the bytes, to replies, and caches those of lists until the next database write.

    The cache is bounded in bytes. The library cachetools is not needed: OrderedDict is an LRU, and counting its bytes
    takes one line.
    """

    def __init__(self, revisions: DatabaseVersion) -> None:
        self._revisions = revisions
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._bodies = _Bodies()

    async def answer(self, request: web.Request, caller: str | None, make: Make) -> web.Response:
        """Return the reply of `make`, or 304. `caller` is a part of the cache key; None disables the cache.

        The database version is read before the rows: in the other order, a write in between would go unnoticed.
        """
        revision = None if caller is None else await self._revisions.current()
        key = (caller or "", request.path_qs)
        kept = self._kept.get(key)
        known = None if kept is None or kept.revision != revision else self._bodies.get(kept.headers["ETag"])
        if kept is not None and known is not None:
            self._kept.move_to_end(key)
            return _not_modified_or(request, known, kept.headers)
        response = await make()
        body = response.body
        # Only a successful reply has an ETag.
        if response.status != HTTPStatus.OK or not isinstance(body, bytes):
            return response
        # The library adds Content-Length itself; the other headers stay the same.
        headers = {name: value for name, value in response.headers.items() if name != "Content-Length"}
        headers |= {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"', "Vary": "Authorization"}
        headers["Cache-Control"] = "private, no-cache"
        if revision is not None and len(request.path_qs) <= _LONGEST_PATH:
            self._keep(key, _Kept(revision, headers), body)
        return _not_modified_or(request, body, headers)

    def _keep(self, key: tuple[str, str], kept: _Kept, body: bytes) -> None:
        self._bodies.put(kept.headers["ETag"], body)
        self._kept[key] = kept
        self._kept.move_to_end(key)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)


def _not_modified_or(request: web.Request, body: bytes, headers: dict[str, str]) -> web.Response:
    if _matches(request.headers.getall("If-None-Match", []), headers["ETag"]):
        shown = {name: value for name, value in headers.items() if name != "Content-Type"}
        return web.Response(status=304, headers=shown)
    return web.Response(body=body, headers=headers)


def _matches(sent: list[str], etag: str) -> bool:
    tags = {tag.strip().removeprefix("W/") for line in sent for tag in line.split(",")}
    return etag in tags or "*" in tags
