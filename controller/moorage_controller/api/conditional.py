"""Replies that a caller may hold already: ETag, If-None-Match and 304 (RFC 9110), and lists that are read once."""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from moorage_controller.store.revisions import Revisions

_MOST_KEPT = 256

Make = Callable[[], Awaitable[web.Response]]


@dataclass(frozen=True, slots=True)
class _Kept:
    revision: str
    body: bytes
    headers: dict[str, str]


class Conditional:
    """Gives replies their ETag, a hash of their bytes, and keeps those of lists while nothing is written."""

    def __init__(self, revisions: Revisions) -> None:
        self._revisions = revisions
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    async def answer(self, request: web.Request, caller: str | None, make: Make) -> web.Response:
        """Return what `make` replies, or 304. `caller` names whose list it is; None: it is made anew each time.

        The number comes first and the rows after: the other way round, a write in between would be missed for good.
        """
        revision = None if caller is None else await self._revisions.current()
        key = (caller or "", request.path_qs)
        kept = self._kept.get(key)
        if kept is not None and kept.revision == revision:
            self._kept.move_to_end(key)
            return _unless_known(request, kept.body, kept.headers)
        response = await make()
        body = response.body
        # Only a success is a representation.
        if response.status != HTTPStatus.OK or not isinstance(body, bytes):
            return response
        # The library adds a length of its own; the rest is the same each time.
        headers = {name: value for name, value in response.headers.items() if name != "Content-Length"}
        headers |= {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"', "Vary": "Authorization"}
        headers["Cache-Control"] = "private, no-cache"
        if revision is not None:
            self._keep(key, _Kept(revision, body, headers))
        return _unless_known(request, body, headers)

    def _keep(self, key: tuple[str, str], kept: _Kept) -> None:
        self._kept[key] = kept
        self._kept.move_to_end(key)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)


def _unless_known(request: web.Request, body: bytes, headers: dict[str, str]) -> web.Response:
    if _matches(request.headers.getall("If-None-Match", []), headers["ETag"]):
        shown = {name: value for name, value in headers.items() if name != "Content-Type"}
        return web.Response(status=304, headers=shown)
    return web.Response(body=body, headers=headers)


def _matches(sent: list[str], etag: str) -> bool:
    tags = {tag.strip().removeprefix("W/") for line in sent for tag in line.split(",")}
    return etag in tags or "*" in tags
