"""Live progress of an operation: the state of each network, volume and container, and how many are done."""

import json
import re
from contextlib import nullcontext
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from moorage_cli import clean, formatting
from moorage_cli.client import Client
from moorage_cli.errors import MoorageError, UnreachableError

_RESOURCE = re.compile(r"(Network|Volume|Container|Image|Service|Config|Secret) (\S+) +(\S.*)")
_DONE = re.compile(
    r"(Created|Started|Running|Healthy|Exited|Stopped|Removed|Recreated|Restarted|Built|Pulled|Exists|Skipped)\b"
)
_MOST_ROWS = 20
_INTERRUPTED = 130


class Progress:
    """The progress so far. On a terminal each resource has one changing line; elsewhere every line is printed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[str, str] = {}

    def take(self, line: str) -> None:
        """Process a line of output."""
        line = clean.text(line)
        found = _RESOURCE.fullmatch(line)
        if found and self._console.is_terminal:
            self._states[f"{found[1]} {found[2]}"] = found[3]
        else:
            self._console.print(Text(line))

    def __rich__(self) -> Table:
        """Render it."""
        drawn = Table.grid(padding=(0, 1))
        done = sum(_is_done(state) for state in self._states.values())
        if self._states:
            drawn.add_row(ProgressBar(total=len(self._states), completed=done, width=30), f"{done}/{len(self._states)}")
        rows = Table.grid(padding=(0, 1))
        # Resources in progress come first, in case there is no room for all.
        for name, state in sorted(self._states.items(), key=lambda each: _is_done(each[1]))[:_MOST_ROWS]:
            ready = _is_done(state)
            rows.add_row(Text("✔" if ready else "…", style="green" if ready else "yellow"), Text(name), Text(state))
        whole = Table.grid()
        whole.add_row(rows)
        whole.add_row(drawn)
        return whole


def _is_done(state: str) -> bool:
    return _DONE.match(state) is not None


def watch(client: Client, operation_id: str, what: str, *, quiet: bool = False) -> dict[str, Any]:
    """Show an operation until it ends, and return its final state. Raises MoorageError if it did not succeed.

    Ctrl-C leaves it running and prints how to follow it again; so does a controller that becomes unreachable.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    progress = Progress(console)
    ended: dict[str, Any] = {}
    try:
        with Live(progress, console=console, refresh_per_second=8) if console.is_terminal else nullcontext():
            for event in client.stream(f"/api/operations/{operation_id}/output"):
                if event.event == "done":
                    ended = json.loads(event.data)
                elif event.event == "message" and not quiet:
                    progress.take(event.data)
    except KeyboardInterrupt:
        formatting.say(f"\n{_goes_on(what, operation_id)}", err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None
    except UnreachableError as error:
        raise UnreachableError(f"{error.message} {_goes_on(what, operation_id)}") from None
    if not ended:
        raise UnreachableError(f"The output ended early. {_goes_on(what, operation_id)}")
    if ended["state"] != "succeeded":
        raise MoorageError(f"{what} {ended['state']}: {ended['error'] or 'it was not said why'}")
    return ended


def _goes_on(what: str, operation_id: str) -> str:
    return (
        f"{what} goes on. To come back to it: moorage follow {operation_id}; "
        f"to call it off: moorage cancel {operation_id}"
    )
