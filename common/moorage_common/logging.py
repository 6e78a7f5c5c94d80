"""Structured logs: JSON lines, or readable ones on a terminal; and the request id shared by a request's lines."""

import logging
import re
import sys
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TextIO

import structlog
from structlog.typing import Processor

REQUEST_ID_KEY = "moorage-request-id"
"""The gRPC metadata key that carries a request's id to an agent."""
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def configure(level: str, *, stream: TextIO | None = None, file: Path | None = None, brief: bool = False) -> None:
    """Send all logs, structlog's and the standard library's, as one line each to standard error, and to `file` too.

    `level` is one of debug, info, warning, error (any case). `brief`: standard error only gets warnings and errors, for
    commands that print their own results. A terminal gets coloured text, everything else JSON. A file that was moved
    or removed is created again with the next line, as logrotate expects; it is readable by its owner and group. Raises
    OSError if it can't be opened.
    """
    target = sys.stderr if stream is None else stream
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handlers: list[logging.Handler] = [_formatted(logging.StreamHandler(target), shared, readable=target.isatty())]
    if brief:
        handlers[0].setLevel(logging.WARNING)
    if file is not None:
        handlers.append(_formatted(_LogFile(file), shared, readable=False))
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(level.upper())
    for noisy in ("aiosqlite", "asyncssh", "docker", "urllib3", "alembic"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def is_request_id(text: str) -> bool:
    """Return whether a caller's text is valid as a request id in logs and headers."""
    return _SANE_REQUEST_ID.fullmatch(text) is not None


def request_id() -> str:
    """Return the id of the request that caused the current work; empty for the program's own work."""
    found = structlog.contextvars.get_contextvars().get("request_id", "")
    return found if isinstance(found, str) else ""


class _LogFile(WatchedFileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def _open(self) -> TextIO:  # type: ignore[override]  # a narrower type than the library's
        opened = super()._open()
        Path(self.baseFilename).chmod(0o640)
        return opened

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            # Its folder is gone, or the disk is full: standard error has the line, and the program continues.
            self.handleError(record)


def _formatted(handler: logging.Handler, shared: list[Processor], *, readable: bool) -> logging.Handler:
    renderer: Processor = (
        # Plain tracebacks: rich ones show local variables, which may be secrets.
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if readable
        else structlog.processors.JSONRenderer()
    )
    last = [renderer] if readable else [structlog.processors.format_exc_info, renderer]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    return handler
