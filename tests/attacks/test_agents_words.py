"""Malicious values in every field that an agent can send."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.untrusted import LIMITS, UntrustedError, clean_text
from moorage_controller.hosts import messages, wire

ESCAPES = "\x1b]52;c;aGFoYQ==\x07\x1b[31mred\u202e\x00\x9b2J\r\n"
TEXTS = (
    ESCAPES,
    "A" * 1_000_000,
    ESCAPES * 50_000,
    "é" * 100_000,
    "not-a-uuid",
    "/" + "a" * 9_000,
    "/srv/app",
    "",
    " ",
    "\ufeff",
)
VALUES: dict[int, tuple[object, ...]] = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: (b"\xff" * 1_000_000,),
    FieldDescriptor.TYPE_BOOL: (True, False),
    FieldDescriptor.TYPE_INT32: (-(2**31), -1, 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), -1, 2**63 - 1),
    FieldDescriptor.TYPE_ENUM: (99, -1, 2**31 - 1),
}
ID = "0123456789abcdef" * 4
UUIDS = ("11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222")
PATH = "/srv/app"
_MOST_ITEMS = 10_000

READERS: dict[str, Callable[[Any], object]] = {
    "GetInfoResponse": lambda m: messages.host_info(m.host),
    "StartOperationResponse": lambda _: None,
    "FollowOperationResponse": lambda m: (
        messages.end(m.end) if m.WhichOneof("content") == "end" else messages.output(m.output)
    ),
    "CancelOperationResponse": lambda m: messages.cancel_outcome(m.outcome),
    "WatchResponse": lambda m: messages.watch_item(m, {PATH}),
    "PrepareRenewalResponse": lambda _: None,
    "InstallCertificateResponse": lambda _: None,
    "GetAppResponse": lambda m: messages.observation(m.app),
    "ListProjectsResponse": messages.projects,
    "LogsResponse": messages.log_lines,
    "SetDeadlineResponse": lambda _: None,
}
"""The decoder of each reply. The signing authority checks a signing request."""
UNREAD = frozenset(
    {
        ("StartOperationResponse", "attached"),
        ("PrepareRenewalResponse", "signing_request"),
        ("AppObservation", "real_directory"),
        ("Host", "boot_id"),
    }
)
"""Fields that the controller doesn't read, or not here. One that is new is either read, and so tried, or named here."""


def honest(kind: str) -> Message:
    """Return a reply with every field set to a valid value."""
    container = pb.Container(id=ID, name="web-1", service="web", image="web", state="running", health="healthy")
    container.restart_policy = "always"
    container.ports.append("80/tcp")
    container.started_at.FromJsonString("2026-01-01T00:00:00Z")
    container.finished_at.FromJsonString("2026-01-02T00:00:00Z")
    project = pb.Project(name="shop", directory=PATH)
    app = pb.AppObservation(cd_path=PATH, project=project, containers=[container], replicas={"web": 1})
    app.deadlines[UUIDS[0]] = 1
    app.stops[UUIDS[0]] = UUIDS[1]
    host = pb.Host(engine_reachable=True)
    end = pb.End(end=pb.OPERATION_END_EXITED, observed=app)
    made: dict[str, Message] = {
        "GetInfoResponse": pb.GetInfoResponse(host=host),
        "StartOperationResponse": pb.StartOperationResponse(),
        "FollowOperationResponse": pb.FollowOperationResponse(end=end),
        "CancelOperationResponse": pb.CancelOperationResponse(outcome=pb.CANCEL_OUTCOME_BURIED),
        "WatchResponse": pb.WatchResponse(snapshot=pb.Snapshot(host=host, apps=[app])),
        "PrepareRenewalResponse": pb.PrepareRenewalResponse(),
        "InstallCertificateResponse": pb.InstallCertificateResponse(),
        "GetAppResponse": pb.GetAppResponse(app=app),
        "ListProjectsResponse": pb.ListProjectsResponse(
            projects=[pb.HostProject(project=project, containers=[container])]
        ),
        "LogsResponse": pb.LogsResponse(lines=[pb.LogLine(container="web-1", service="web", text="hello")]),
        "SetDeadlineResponse": pb.SetDeadlineResponse(),
    }
    return made[kind]


def answers() -> list[str]:
    """Return the names of all replies of an agent."""
    return sorted({method.output_type.name for method in pb.DESCRIPTOR.services_by_name["Agent"].methods})


def test_every_agent_reply_has_a_decoder() -> None:
    assert answers() == sorted(READERS)


@pytest.mark.parametrize("kind", answers())
def test_every_field_is_bounded_and_cleaned(kind: str) -> None:
    tried = set()
    for path, field in fields(honest(kind).DESCRIPTOR):
        outcomes = []
        for spoil in spoilers(field):
            message = honest(kind)
            into = reached(message, path)
            before = read(kind, message)
            spoil(into, field.name)
            outcomes.append(read(kind, message) != before)
        name = (field.containing_type.name, field.name)
        # Nested messages are covered by their own fields.
        if field.message_type is None or field.is_repeated:
            assert any(outcomes) is (name not in UNREAD), f"{name} is not read, or is read now"
        tried.add((field.containing_type.name, field.name))
    # None was omitted.
    expected = {(d.name, f.name) for d in descriptors(honest(kind).DESCRIPTOR) for f in d.fields}
    assert tried == expected


@pytest.mark.parametrize("kind", answers())
def test_malformed_message_bytes_are_reported(kind: str) -> None:
    for raw in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x80" * 20, None, 7):
        with pytest.raises(UntrustedError):
            wire.read(getattr(pb, kind), raw)


def test_message_with_too_many_fields_is_rejected() -> None:
    for raw in (b"\x0a\x00" * 1_900_000, b"\x08\x01" * 1_900_000, b"\x22\x00" * 1_900_000):
        with pytest.raises(UntrustedError, match="fields in a message"):
            wire.read(pb.ListProjectsResponse, raw)


def fields(
    descriptor: Any,  # noqa: ANN401 - same
    path: tuple[str, ...] = (),
    seen: tuple[Any, ...] = (),
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each field with the names that lead to the message it is in."""
    for field in descriptor.fields:
        yield path, field
        inner = field.message_type
        if inner is not None and not inner.GetOptions().map_entry and inner not in seen:
            yield from fields(inner, (*path, field.name), (*seen, descriptor))


def descriptors(descriptor: Any) -> set[Any]:  # noqa: ANN401 - of two classes, by how protobuf was built
    """Return a message's and all messages' in it."""
    found = {descriptor}
    for field in descriptor.fields:
        inner = field.message_type
        if inner is not None and not inner.GetOptions().map_entry:
            found |= descriptors(inner)
    return found


def reached(message: Any, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - messages of whatever kind
    """Return the nested message at a path of names."""
    for name in path:
        message = getattr(message, name)
        if hasattr(message, "add"):
            message = message[0] if len(message) else message.add()
        else:
            message.SetInParent()
        if isinstance(message, pb.AppObservation) and not message.cd_path:
            message.CopyFrom(reached(honest("GetAppResponse"), ("app",)))
    return message


def spoilers(field: Any) -> list[Callable[[Any, str], None]]:  # noqa: ANN401 - same
    """Return functions that put malformed values into a field."""
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return [many_keys(inner)]
    if inner is not None:
        return [many_messages] if field.is_repeated else [lambda message, name: getattr(message, name).SetInParent()]
    if field.is_repeated:
        return [lambda message, name: getattr(message, name).extend(TEXTS * 100)]
    return [setter(value) for value in VALUES[field.type]]


def setter(value: object) -> Callable[[Any, str], None]:
    """Return a function that sets a field."""
    return lambda message, name: setattr(message, name, value)


def many_messages(message: Any, name: str) -> None:  # noqa: ANN401 - same
    """Add very many messages, all empty."""
    for _ in range(_MOST_ITEMS):
        getattr(message, name).add()


def many_keys(entry: Any) -> Callable[[Any, str], None]:  # noqa: ANN401 - same
    """Return a function that fills a map with invalid keys."""
    value = entry.fields_by_name["value"]

    def fill(message: Any, name: str) -> None:  # noqa: ANN401 - same
        for n, text in enumerate(TEXTS):
            odd = VALUES[value.type][n % 3]
            getattr(message, name)[text] = odd
            getattr(message, name)[UUIDS[n % 2]] = odd
        if value.type != FieldDescriptor.TYPE_STRING:
            for n in range(900):
                getattr(message, name)[f"{n}"] = n

    return fill


def read(kind: str, message: Message) -> object:
    """Return the decoded reply, checked to be bounded and clean; or the text of the gate's error."""
    try:
        seen = READERS[kind](wire.read(type(message), message.SerializeToString()))
    except UntrustedError as error:
        return clean_text(str(error), 200)
    assert_clean(seen)
    return seen


def assert_clean(seen: Any) -> None:  # noqa: ANN401, C901 - whatever is read; one case a type
    """Assert that all of it is bounded and clean."""
    match seen:
        case Enum() | None | bool() | UUID() | datetime():
            pass
        case str():
            assert len(seen) <= max(LIMITS.path, LIMITS.log_text)
            assert "\x00" not in seen
            if not seen.startswith("/") and seen != PATH:
                assert seen == clean_text(seen, LIMITS.log_text)
        case bytes():
            assert len(seen) <= LIMITS.message
        case int() | float():
            assert math.isfinite(seen)
            assert -LIMITS.int32 - 1 <= seen <= LIMITS.int64
        case dict():
            assert len(seen) <= LIMITS.services
            for key, value in seen.items():
                assert_clean(key)
                assert_clean(value)
        case list() | tuple():
            assert len(seen) <= LIMITS.apps
            for item in seen:
                assert_clean(item)
        case _:
            assert dataclasses.is_dataclass(seen), type(seen)
            for field in dataclasses.fields(seen):
                assert_clean(getattr(seen, field.name))
