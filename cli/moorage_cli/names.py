"""Resolution of names to ids: an app's or a server's name, SERVER/APP if several apps share it, or the id itself."""

from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from moorage_cli import clean, logins
from moorage_cli.client import Client
from moorage_cli.errors import MoorageError, UnknownNameError

Row = dict[str, Any]


def server(client: Client, name: str) -> Row:
    """Find a server by name or id. Raises UnknownNameError."""
    servers: list[Row] = client.get("/api/servers")
    return _one("server", name, [each for each in servers if name in {each["id"], each["name"]}], "the id")


def app(client: Client, name: str) -> Row:
    """Find an app by name, SERVER/NAME or id. Raises UnknownNameError."""
    apps: list[Row] = client.get("/api/apps")
    found = [each for each in apps if name in {each["id"], each["name"]}]
    if len(found) != 1:
        names = {each["id"]: each["name"] for each in client.get("/api/servers")}
        full = [each for each in apps if name == f"{names.get(each['serverId'])}/{each['name']}"]
        found = full or found
    return _one("app", name, found, "SERVER/NAME or the id")


def _one(kind: str, name: str, found: Sequence[Row], instead: str) -> Row:
    if not found:
        raise UnknownNameError(f"There is no {kind} called {name}: see moorage {kind}s.")
    if len(found) > 1:
        raise UnknownNameError(f"{len(found)} {kind}s are called {name}: give {instead}.")
    return found[0]


def complete_app(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the names of apps; no names if the controller doesn't answer."""
    return _complete("/api/apps", begun)


def complete_server(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the names of servers."""
    return _complete("/api/servers", begun)


def _complete(path: str, begun: str) -> list[CompletionItem]:
    try:
        rows: list[Row] = logins.client().get(path)
    except MoorageError:
        return []
    # Unclean names are left out: the shell prints them, and a cleaned name would match no app.
    names = [row for row in rows if clean.is_clean(row["name"]) and row["name"].startswith(begun)]
    return [CompletionItem(row["name"], help=clean.line(row["status"])) for row in names]
