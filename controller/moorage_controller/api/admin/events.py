"""The event stream over HTTP: changed apps, servers and operations, in the form of their GETs."""

import json
import re
from contextlib import ExitStack, aclosing
from uuid import UUID

from moorage_controller.api.convert import app_out, operation_out, server_out
from moorage_controller.api.http.call import Call, to_json
from moorage_controller.api.http.replies import Reply, stream
from moorage_controller.api.http.sse import Event, Events
from moorage_controller.auth.stream_shares import Kind
from moorage_controller.services.events.feed import ChangeEvent, Feed, Resource, StreamOpened
from moorage_controller.store.tables.apps import AppView
from moorage_controller.store.tables.servers import Server

_LONGEST = 64 * 1024
"""Maximum length of an event, in characters; usual events have some thousands at most."""
_NUMBER = re.compile(r"[0-9]{1,18}")


async def follow_events(call: Call) -> Reply:
    """GET /api/events: stream each app, server and operation when it changes, in the form of its GET.

    `stopping_soon`, with the app, comes some minutes before auto-stop (STOPPING_SOON_MINUTES).

    The first event is `ready`: `resumed` is true if no event was missed since Last-Event-ID. If it is false, read the
    lists now. A deleted resource is sent as its `id` and `deleted`. A resource too large for an event is sent as its
    `id` and `tooLarge`: read it by its GET.
    """
    sent = call.last_event_id
    after = int(sent) if _NUMBER.fullmatch(sent) else None
    with ExitStack() as held:
        held.enter_context(call.services.stream_shares.of_user(Kind.EVENTS, call.principal.user_id))
        return stream(_events(call.services.feed, after), held)


def show(resource_id: UUID, resource: Resource | None) -> str:
    """Return the data of an event."""
    if resource is None:
        return json.dumps({"id": str(resource_id), "deleted": True})
    text = _shown(resource)
    return text if len(text) <= _LONGEST else json.dumps({"id": str(resource_id), "tooLarge": True})


def _shown(resource: Resource) -> str:
    if isinstance(resource, AppView):
        return to_json(app_out(resource))
    return to_json(server_out(resource) if isinstance(resource, Server) else operation_out(resource))


async def _events(feed: Feed, after: int | None) -> Events:
    async with aclosing(feed.listen(after)) as batches:
        async for batch in batches:
            yield [_event(news) for news in batch]


def _event(news: StreamOpened | ChangeEvent) -> Event:
    if isinstance(news, StreamOpened):
        return Event(json.dumps({"resumed": news.resumed}), id=str(news.number), name="ready")
    return Event(news.text, id=str(news.number), name=news.kind.value)
