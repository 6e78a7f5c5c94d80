"""Output formats: tables for people, JSON for programs, readable times."""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moorage_cli import clean

_COLOURS = {
    "running": "green",
    "online": "green",
    "healthy": "green",
    "succeeded": "green",
    "starting": "yellow",
    "stopping": "yellow",
    "degraded": "yellow",
    "checking": "yellow",
    "offline": "red",
    "unhealthy": "red",
    "failed": "red",
    "interrupted": "red",
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_WIDE = 10_000
"""Columns if the output isn't a terminal: no line is broken there."""


def json_document(document: object) -> None:
    """Print a JSON document."""
    click.echo(clean.escaped(json.dumps(document, indent=2, ensure_ascii=False)))


def say(message: str, *, end: str = "\n", err: bool = False) -> None:
    """Print text that may contain untrusted words, cleaned."""
    click.echo(clean.text(message) + end, nl=False, err=err)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns; states are coloured on a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDE, soft_wrap=True)
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row))
    console.print(drawn)


def _cell(value: object) -> Text:
    # Text, not markup: a name may contain brackets.
    text = ("" if value is None else clean.line(value)) or "-"
    return Text(text, style=_COLOURS.get(text.partition(" ")[0], ""))


def health(app: Mapping[str, Any]) -> str:
    """Return a running app's health and its reason."""
    if app["status"] != "running":
        return ""
    return f"{app['health']} ({app['healthDetail']})" if app.get("healthDetail") else str(app["health"])


def left(app: Mapping[str, Any]) -> str:
    """Return an app's remaining time."""
    if app["stopAt"] is None:
        return ""
    seconds = app["stopAt"] / 1000 - time.time()
    if app["overdue"] or seconds < 0:
        return f"overdue by {span(-seconds)}"
    return f"in {span(seconds)}"


def span(seconds: float) -> str:
    """Return a time span in its two largest units."""
    whole = max(round(seconds), 0)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def local(moment: str) -> str:
    """Return an ISO 8601 time of the API in this machine's zone, to the second."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock_time(millis: int) -> str:
    """Return an epoch time of the API in this machine's zone, to the minute."""
    return datetime.fromtimestamp(millis / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
