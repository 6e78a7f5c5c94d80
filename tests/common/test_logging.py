"""Logs: one JSON object per line, into a file that may be rotated; logging errors never end the program."""

import io
import json
import logging as standard_logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from moorage_common import logging


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = standard_logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(text: str) -> list[Any]:
    """Return the log lines."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def begin(tmp_path: Path) -> Callable[[], tuple[Any, Path, io.StringIO]]:
    """Return a function that starts logging into a file and a stream."""

    def made() -> tuple[Any, Path, io.StringIO]:
        path, stream = tmp_path / "app.log", io.StringIO()
        logging.configure("info", stream=stream, file=path)
        return structlog.get_logger("test"), path, stream

    return made


def test_every_line_is_in_the_file_and_on_the_stream(begin: Callable[[], tuple[Any, Path, io.StringIO]]) -> None:
    log, path, stream = begin()
    log.info("app_started", app_id="7", note="line\nbreak")
    standard_logging.getLogger("a.library").warning("it says %s", "so")
    assert [line["event"] for line in lines(stream.getvalue())] == ["app_started", "it says so"]
    first, second = lines(path.read_text())
    assert (first["event"], first["app_id"], first["note"], first["level"]) == (
        "app_started",
        "7",
        "line\nbreak",
        "info",
    )
    assert (second["event"], second["logger"]) == ("it says so", "a.library")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_rotated_log_file_is_reopened(begin: Callable[[], tuple[Any, Path, io.StringIO]]) -> None:
    log, path, _ = begin()
    log.info("first")
    path.rename(path.with_suffix(".log.1"))
    log.info("second")
    path.unlink()
    log.info("third")
    assert [line["event"] for line in lines(path.with_suffix(".log.1").read_text())] == ["first"]
    assert [line["event"] for line in lines(path.read_text())] == ["third"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_truncated_log_file_is_continued(begin: Callable[[], tuple[Any, Path, io.StringIO]]) -> None:
    log, path, _ = begin()
    log.info("first")
    os.truncate(path, 0)
    log.info("second")
    assert [line["event"] for line in lines(path.read_text())] == ["second"]


def test_missing_log_folder_does_not_end_program(
    begin: Callable[[], tuple[Any, Path, io.StringIO]], tmp_path: Path
) -> None:
    log, path, stream = begin()
    path.unlink()
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    log.info("still_here")
    tmp_path.mkdir()
    log.info("and_again")
    assert [line["event"] for line in lines(stream.getvalue())] == ["still_here", "and_again"]
    assert [line["event"] for line in lines(path.read_text())] == ["and_again"]


def test_unwritable_log_file_is_reported_immediately(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        logging.configure("info", file=tmp_path / "no" / "app.log")


@pytest.mark.parametrize(("text", "sane"), [("a-b_c.1", True), ("", False), ("x" * 129, False), ("a b", False)])
def test_request_id_format_is_checked(text: str, sane: bool) -> None:  # noqa: FBT001 - a case's answer
    assert logging.is_request_id(text) is sane


def test_log_line_has_request_id_of_current_task() -> None:
    assert logging.request_id() == ""
    with structlog.contextvars.bound_contextvars(request_id="abc"):
        assert logging.request_id() == "abc"
