"""The command line: `moorage login | servers | apps | start | stop | restart | extend | follow | logs | audit ...`.

Exit codes: 0 done; 1 failed or refused; 2 wrong usage; 3 not logged in; 4 no such name; 5 the controller can't be
reached; 130 Ctrl-C, after which the operation continues.
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import TextIO

import click
from click.shell_completion import get_completion_class

from moorage_cli import formatting, logins, names
from moorage_cli.client import Client
from moorage_cli.errors import MoorageError
from moorage_cli.progress import watch

_json = click.option("--json", "as_json", is_flag=True, help="For programs: the API's own JSON.")
_app = click.argument("app", shell_complete=names.complete_app)
_server = click.argument("server", shell_complete=names.complete_server)
_detach = click.option("--detach", "-d", is_flag=True, help="Don't wait for its end.")
_MINUTES = click.IntRange(1, 43_200)
_KINDS = {"up": "The start", "down": "The stop", "restart": "The restart"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("moorage-cli"), prog_name="moorage", message="%(prog)s %(version)s")
def main() -> None:
    """Start, watch and stop Docker Compose apps on many hosts. APP is a name, SERVER/NAME, or an id."""


@main.command()
@click.argument("url")
@click.option("--username", "-u", prompt=True, help="Asked for where it isn't given.")
@click.option("--password-file", type=click.File(), help="File with the password, - for standard input.")
def login(url: str, username: str, password_file: TextIO | None) -> None:
    """Log in to the controller at URL; the token is valid for a day, and stored in a private file (mode 0600)."""
    client = Client(url)
    if password_file is None:
        password = click.prompt("Password", hide_input=True)
    else:
        password = password_file.readline().rstrip("\r\n")
    found = client.post("/api/auth/login", {"username": username, "password": password})
    path = logins.save(client.url, found["token"])
    formatting.say(
        f"Logged in to {client.url} as {found['user']['username']} ({found['user']['role']}); kept in {path}."
    )


@main.command()
def logout() -> None:
    """Log out: revoke the token, and delete the stored copy."""
    try:
        logins.client().post("/api/auth/logout")
    finally:
        forgotten = logins.forget()
    formatting.say("Logged out." if forgotten else "Logged out; nothing was kept here.")


@main.command()
@_json
def servers(*, as_json: bool) -> None:
    """List the servers with their connection and status."""
    found = logins.client().get("/api/servers")
    if as_json:
        formatting.json_document(found)
        return
    fields = ("name", "address", "status", "connection", "runningAppsCount", "agentVersion", "statusDetail")
    rows = [[server[field] for field in fields] for server in found]
    formatting.table(["NAME", "ADDRESS", "STATUS", "BY", "APPS RUNNING", "AGENT", "WHY"], rows)


@main.command()
@click.option("--server", shell_complete=names.complete_server, help="Only those on a server.")
@click.option("--running", is_flag=True, help="Only those that run.")
@_json
def apps(server: str | None, *, running: bool, as_json: bool) -> None:
    """List the apps with their status, health and stop time."""
    client = logins.client()
    found = client.get("/api/apps")
    if server is not None:
        wanted = names.server(client, server)["id"]
        found = [app for app in found if app["serverId"] == wanted]
    if running:
        found = [app for app in found if app["status"] != "stopped"]
    if as_json:
        formatting.json_document(found)
        return
    places = {each["id"]: each["name"] for each in client.get("/api/servers")}
    projects = {each["id"]: each["name"] for each in client.get("/api/projects")}
    rows = [
        [
            app["name"],
            places.get(app["serverId"]),
            projects.get(app["projectId"]),
            app["status"],
            formatting.health(app),
            formatting.left(app),
            app["appUrl"],
            app["lastError"],
        ]
        for app in found
    ]
    formatting.table(["NAME", "SERVER", "PROJECT", "STATUS", "HEALTH", "STOPS", "URL", "LAST ERROR"], rows)


@main.command()
@_app
@click.option("--minutes", "-m", type=_MINUTES, help="How long it may run; without it the app's own time.")
@_detach
@_json
def start(app: str, minutes: int | None, *, detach: bool, as_json: bool) -> None:
    """Start an app and show its progress; it is stopped automatically when its time is over."""
    _operate(app, "start", {"timeout": minutes} if minutes else {}, detach=detach, as_json=as_json)


@main.command()
@_app
@click.option("--minutes", "-m", type=_MINUTES, help="How long it may run; without it the app's own time.")
@_detach
@_json
def restart(app: str, minutes: int | None, *, detach: bool, as_json: bool) -> None:
    """Recreate an app's containers; its time starts again, too."""
    _operate(app, "restart", {"timeout": minutes} if minutes else {}, detach=detach, as_json=as_json)


@main.command()
@_app
@_detach
@_json
def stop(app: str, *, detach: bool, as_json: bool) -> None:
    """Stop an app and remove its containers; volumes stay."""
    _operate(app, "stop", {}, detach=detach, as_json=as_json)


def _operate(name: str, verb: str, body: dict[str, int], *, detach: bool, as_json: bool) -> None:
    client = logins.client()
    app = names.app(client, name)
    operation = client.post(f"/api/apps/{app['id']}/{verb}", body, later=True)
    if not detach:
        operation = watch(client, operation["id"], f"The {verb} of {app['name']}", quiet=as_json)
    if as_json:
        formatting.json_document(operation)
    elif detach:
        formatting.say(f"The {verb} of {app['name']} goes on. To watch it: moorage follow {operation['id']}")
    else:
        formatting.say(_state(client.get(f"/api/apps/{app['id']}")))


_RESULTS: dict[str, str] = {
    "completed": ": all its containers have exited with code 0",
    "nothing_started": ": its files have no service that is to have a container",
}


def _state(app: names.Row) -> str:
    if app["stopAt"] is None:
        return f"{app['name']} is {app['status']}{_RESULTS.get(app.get('lastResult') or '', '')}."
    url = f" at {app['appUrl']}" if app["appUrl"] else ""
    return (
        f"{app['name']} is {app['status']}{url}, until {formatting.clock_time(app['stopAt'])} ({formatting.left(app)})."
    )


@main.command()
@_app
@click.option("--minutes", "-m", type=_MINUTES, required=True, help="So many minutes more.")
@_json
def extend(app: str, minutes: int, *, as_json: bool) -> None:
    """Give a running app more time."""
    client = logins.client()
    found = client.post(f"/api/apps/{names.app(client, app)['id']}/extend", {"minutes": minutes})
    if as_json:
        formatting.json_document(found)
    else:
        formatting.say(_state(found))


@main.command()
@click.argument("operation")
@_json
def follow(operation: str, *, as_json: bool) -> None:
    """Follow an operation: show its output from the beginning until its end."""
    client = logins.client()
    found = client.get(f"/api/operations/{operation}")
    ended = watch(client, found["id"], _KINDS.get(found["kind"], "The operation"), quiet=as_json)
    if as_json:
        formatting.json_document(ended)
    else:
        formatting.say(f"{_KINDS.get(found['kind'], 'The operation')} {ended['state']}.")


@main.command()
@click.argument("operation")
def cancel(operation: str) -> None:
    """Cancel a start: its command is ended on the host."""
    logins.client().post(f"/api/operations/{operation}/cancel")
    formatting.say(f"Called off. To see its end: moorage follow {operation}")


@main.command()
@_app
@click.option("--follow", "-f", "goes_on", is_flag=True, help="Go on as lines come, until Ctrl-C.")
@click.option(
    "--tail", "-n", type=click.IntRange(0, 10_000), default=200, show_default=True, help="Last lines of each."
)
@click.option("--service", "-s", help="Only the containers of one service.")
def logs(app: str, tail: int, service: str | None, *, goes_on: bool) -> None:
    """Show the logs of an app's containers."""
    client = logins.client()
    path = f"/api/apps/{names.app(client, app)['id']}/logs"
    query = {"tail": tail, **({"service": service} if service else {})}
    if not goes_on:
        formatting.say(client.text(path, **query), end="")
        return
    try:
        for event in client.stream(path, follow=True, **query):
            if event.event == "message":
                formatting.say(event.data)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(0) from None


@main.command()
@_server
@click.option("--port", type=click.IntRange(1, 65_535), default=7443, show_default=True, help="The agent's port.")
@click.option("--allow-root", "roots", multiple=True, help="Directory below which apps may lie; may be repeated.")
@_detach
@_json
def bootstrap(server: str, port: int, roots: Sequence[str], *, detach: bool, as_json: bool) -> None:
    """Install or upgrade the agent on a server that is reached by SSH."""
    client = logins.client()
    found = names.server(client, server)
    body = {"port": port, **({"allowRoots": list(roots)} if roots else {})}
    operation = client.post(f"/api/servers/{found['id']}/agent", body, later=True)
    if not detach:
        operation = watch(client, operation["id"], f"The installation on {found['name']}", quiet=as_json)
    if as_json:
        formatting.json_document(operation)
    elif detach:
        formatting.say(f"The installation on {found['name']} goes on. To watch it: moorage follow {operation['id']}")
    else:
        formatting.say(f"The agent is on {found['name']}.")


@main.command()
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=50, show_default=True, help="So many entries.")
@click.option("--action", help="Only one action, as START or AUTO_STOP.")
@_json
def audit(limit: int, action: str | None, *, as_json: bool) -> None:
    """Show the audit log, newest entries first."""
    page = logins.client().get("/api/audit-logs", limit=limit, action=action)
    if as_json:
        formatting.json_document(page)
        return
    fields = ("username", "action", "details", "ipAddress")
    rows = [[formatting.local(entry["createdAt"]), *(entry[field] for field in fields)] for entry in page["logs"]]
    formatting.table(["WHEN", "WHO", "ACTION", "WHAT", "FROM"], rows)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL: `eval "$(moorage completion bash)"`."""
    made = get_completion_class(shell)
    if made is None:
        raise MoorageError(f"There is no completion for {shell}.")
    click.echo(made(main, {}, "moorage", "_MOORAGE_COMPLETE").source())


if __name__ == "__main__":
    main()
