"""Malicious replies of an Engine about containers, images and itself, read by agent and by SSH."""

import copy
import json
import operator
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from moorage_common.docker.containers import DIRECTORY, PROJECT, SERVICE, of_inspection, of_labels
from moorage_common.docker.engine_http import EngineProblemError, understanding
from moorage_common.docker.log_parts import Parts
from moorage_common.docker.states import ContainerState
from moorage_common.untrusted import LIMITS, Lines, UntrustedError, clean_line, clean_text, parse_json
from moorage_controller.hosts.ssh import engine

ESCAPES = "\x1b]52;c;aGFoYQ==\x07\x1b[31mred\u202e\x00\x9b2J\r\n"
ODD: tuple[Any, ...] = (
    None, True, -1, 2**70, float("nan"), float("inf"), "", ESCAPES, "A" * 1_000_000, "/\0", "é" * 9_000, [], {},
    [None] * 9_000, {ESCAPES: ESCAPES}, [[1]], {"a": {"b": []}}, "9999-99-99T99:99:99Z", "0000-00-00",
)  # fmt: skip
ABOUT = {
    "Id": "c" * 64,
    "Name": "/shop-web-1",
    "RestartCount": 1,
    "Config": {
        "Image": "web",
        "Labels": {PROJECT: "shop", DIRECTORY: "/srv/shop", SERVICE: "web", "com.docker.compose.oneoff": "False"},
    },
    "State": {
        "Status": "running",
        "ExitCode": 0,
        "StartedAt": "2026-01-01T00:00:00.1Z",
        "FinishedAt": "0001-01-01T00:00:00Z",
        "Health": {"Status": "healthy"},
    },
    "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "90/tcp": None}},  # noqa: S104 - as the Engine shows it
}
INFO = {"SystemTime": "2026-01-01T00:00:00Z", "ServerVersion": "28", "ContainersRunning": 3}
ROWS = [{"Id": "c" * 64, "State": "running"}]


def spoiled(told: Any) -> Iterator[Any]:  # noqa: ANN401 - JSON
    """Yield copies with each part in turn replaced by each malformed value, and removed."""
    for path in paths(told):
        for odd in ODD:
            yield changed(told, path, partial(put, odd))
        yield changed(told, path, operator.delitem)


def put(value: Any, place: Any, key: Any) -> None:  # noqa: ANN401 - JSON
    """Set a part."""
    place[key] = value


def paths(told: Any) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - JSON
    """Yield the way to each part."""
    several = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for key, inner in several:
        yield (key,)
        for path in paths(inner):
            yield (key, *path)


def changed(told: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:  # noqa: ANN401 - JSON
    """Return a copy with one place changed."""
    made = copy.deepcopy(told)
    place = made
    for key in path[:-1]:
        place = place[key]
    change(place, path[-1])
    return made


def assert_clean(state: ContainerState) -> None:
    """Assert that a container is bounded and clean."""
    for text in (state.name, state.service, state.image, *state.ports):
        assert text == clean_line(text, LIMITS.image)
    assert len(state.ports) <= LIMITS.ports
    assert state.state in {"running", "unknown"}
    assert state.health in {"healthy", ""}
    assert abs(state.exit_code) <= LIMITS.int32
    assert 0 <= state.restarts <= LIMITS.int32
    for moment in (state.started_at, state.finished_at):
        assert moment is None or moment.tzinfo is not None


def test_malformed_container_is_cleaned_or_skipped() -> None:
    taken = 0
    for about in spoiled(ABOUT):
        with suppress(EngineProblemError, UntrustedError), understanding():
            found = of_inspection(about, str)
            if found is not None:
                taken += 1
                assert_clean(found.state)
                assert len(found.directory) <= LIMITS.path
                assert len(found.project) <= LIMITS.name
    assert taken > 50


@pytest.mark.parametrize(("told", "read"), [(INFO, engine._facts), (ROWS, engine._states)])
def test_malformed_facts_and_lists_raise_one_error_type(told: object, read: Callable[[Any], object]) -> None:
    assert read(told)
    for odd in spoiled(told):
        with suppress(EngineProblemError), understanding():
            read(odd)


def test_malformed_labels_belong_to_no_app() -> None:
    for label in (PROJECT, DIRECTORY):
        for odd in ("/\0", "A" * 5_000, "\n"):
            assert of_labels({PROJECT: "shop", DIRECTORY: "/srv", label: odd}, str) is None


def test_ten_thousand_ports_are_truncated_with_marker() -> None:
    about = copy.deepcopy(ABOUT)
    about["NetworkSettings"] = {"Ports": {f"{n}/udp": [{"HostIp": "", "HostPort": str(n)}] for n in range(10_000)}}
    found = of_inspection(about, str)
    assert found is not None
    assert len(found.state.ports) == LIMITS.ports
    assert found.state.ports[-1] == "…"


def test_oversized_json_is_rejected() -> None:
    for bomb in (b"[" * 1_000_000, b"[" + b"{}," * 600_000 + b"{}]", b'["' + b'\\"' * 600_000, b"NaN,", b"\xff"):
        with pytest.raises(UntrustedError):
            parse_json(bomb, LIMITS.engine_answer)
    commas = json.dumps({"label": "," * 1_000_000}).encode()
    assert parse_json(commas, LIMITS.engine_answer)["label"]


def test_unterminated_lines_stay_within_memory_limit() -> None:
    lines = Lines(10)
    assert lines.take(b"one\ntwo") == [b"one"]
    assert lines.take(b"\n" + b"A" * 100) == [b"two", b"A" * 10]
    for _ in range(1000):
        assert lines.take(b"A" * 65536) == []
    assert lines.take(b"A\nlast\n") == [b"last"]


TIME = "2026-01-01T00:00:00.000000001Z"
LATER = "2026-01-01T00:00:00.000000002Z"
CUT = f" [cut here: the line is longer than {LIMITS.log_text >> 10} KiB]"


def entry(text: bytes, stream: int = 1) -> bytes:
    """Return an entry of a log as the Engine sends it for a container without a terminal."""
    return bytes([stream, 0, 0, 0]) + len(text).to_bytes(4, "big") + text


def in_pieces(stream: bytes, size: int, *, tty: bool) -> list[tuple[str, str]]:
    """Return the lines of a stream that comes in pieces of a size."""
    parts = Parts(tty=tty)
    found = [line for n in range(0, len(stream), size) for line in parts.take(stream[n : n + size])]
    return [*found, *parts.rest()]


@pytest.mark.parametrize("tty", [True, False])
def test_unterminated_line_is_truncated_with_marker(*, tty: bool) -> None:
    parts = Parts(tty=tty)
    head = f"{TIME} ".encode()
    assert list(parts.take(head if tty else b"\x01\0\0\0\xff\xff\xff\xff" + head)) == []
    for _ in range(1000):
        assert list(parts.take(b"A" * 65536)) == []
    assert len(parts._lines[False]._bytes) <= LIMITS.log_text
    ((time, text),) = parts.rest()
    assert (time, text) == (TIME, "A" * (LIMITS.log_text - len(CUT)) + CUT)


def test_endless_progress_line_is_bounded_and_shows_last_state() -> None:
    parts = Parts(tty=True)
    list(parts.take(f"{TIME} ".encode() + b"B" * 100_000))
    for n in range(2000):
        list(parts.take(b"\r" * 5000 + b"%d%%" % n))
    assert list(parts.take(b"\r\n")) == [(TIME, "1999%")]
    assert list(parts.take(f"{LATER} next\r\n".encode())) == [(LATER, "next")]


@pytest.mark.parametrize("size", [1, 7, 50, 16384, 100_000])
@pytest.mark.parametrize("tty", [True, False])
def test_split_log_line_is_joined_without_breaking_characters(size: int, *, tty: bool) -> None:
    line = ("a" + "é" * 25_000 + "\n").encode()
    pieces = [f"{TIME} ".encode() + line[n : n + 16384] for n in range(0, len(line), 16384)]
    last = f"{LATER} unended".encode()
    stream = b"".join(pieces) + last if tty else b"".join(map(entry, [*pieces, last]))
    assert in_pieces(stream, size, tty=tty) == [(TIME, "a" + "é" * 25_000), (LATER, "unended")]


def test_stdout_and_stderr_lines_are_joined_separately() -> None:
    long = f"{TIME} ".encode() + b"o" * 16384
    stream = entry(long) + entry(f"{LATER} error\n".encode(), 2) + entry(f"{TIME} end\n".encode())
    assert in_pieces(stream, 10, tty=False) == [(LATER, "error"), (TIME, "o" * 16384 + "end")]


def test_process_exit_ends_unfinished_line() -> None:
    stream = entry(f"{TIME} unended".encode()) + entry(f"{LATER} next\n".encode())
    assert in_pieces(stream, 5, tty=False) == [(TIME, "unended"), (LATER, "next")]


def test_log_lines_do_not_depend_on_chunking() -> None:
    lines = [f"2026-01-01T00:00:0{n}Z {'é' * n}\n".encode() for n in range(10)]
    stream = b"".join(map(entry, lines))
    whole = list(Parts(tty=False).take(stream))
    for size in (1, 3, 7, 50):
        assert in_pieces(stream, size, tty=False) == whole
        assert in_pieces(b"".join(lines), size, tty=True) == whole
    assert [text for _, text in whole] == ["é" * n for n in range(10)]


def test_texts_are_truncated_and_cleaned() -> None:
    assert clean_text(ESCAPES, 100) == "red\n"
    assert clean_line(ESCAPES + "\tblue", 100) == "red blue"
    assert len(clean_text("A" * 1_000_000, 100)) == 100
