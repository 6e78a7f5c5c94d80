"""The command line: `moorage-agent enroll | serve | status`."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import click
from moorage_common import logging

from moorage_agent import agent
from moorage_agent.build import build
from moorage_agent.errors import SetupError
from moorage_agent.identity import certificates, enrollment
from moorage_agent.settings import DEFAULT_DATA_DIR, DEFAULT_LISTEN, Settings
from moorage_agent.status import describe, facts

_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DATA_DIR,
    show_default=True,
    help="Where the agent keeps its key, its certificate and the journal of operations.",
)


@click.group()
@click.version_option(build(), prog_name="moorage-agent", message="%(prog)s %(version)s")
def main() -> None:
    """Run Docker Compose on this host, for one controller."""


@main.command()
@click.option("--controller", required=True, help="The controller's URL.")
@click.option("--token-file", required=True, type=click.File(), help="File with the join token; - is standard input.")
@_data_dir
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, help="HOST:PORT to listen on.")
@click.option("--advertise", help="HOST:PORT under which the controller reaches this host; found out by default.")
@click.option("--allow-root", "roots", multiple=True, help="Directory below which apps may lie; may be repeated.")
def enroll(
    controller: str, token_file: TextIO, data_dir: Path, listen: str, advertise: str | None, roots: Sequence[str]
) -> None:
    """Make this host a member: fetch a certificate for it with a join token."""
    with _sentences():
        settings = Settings.load(data_dir)
        membership = enrollment.enroll(
            settings,
            controller=controller,
            token_text=_text(token_file),
            listen=_address(listen, "--listen"),
            advertise=None if advertise is None else _address(advertise, "--advertise"),
            roots=[_directory(root) for root in roots],
        )
        click.echo(f"Enrolled as {membership.agent_name}; the controller will dial {membership.advertise}.")
        if not roots:
            click.echo(f"See {settings.policy_file}: an app runs only below a directory that is listed there.")


@main.command("request-certificate", hidden=True)
@_data_dir
def request_certificate(data_dir: Path) -> None:
    """Make a key and print a certificate signing request for it; the controller calls this over SSH."""
    with _sentences():
        settings = Settings.load(data_dir)
        try:
            click.echo(certificates.request(settings, enrollment.BOOTSTRAP).decode(), nl=False)
        except (OSError, ValueError) as error:
            raise SetupError(f"A key for this agent can't be made in {data_dir} ({error}).") from None


@main.command("accept-certificate", hidden=True)
@click.option("--controller", required=True, help="The controller's URL, for people to read.")
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, help="HOST:PORT to listen on.")
@click.option("--advertise", required=True, help="HOST:PORT under which the controller reaches this host.")
@click.option("--allow-root", "roots", multiple=True, help="Directory below which apps may lie; may be repeated.")
@_data_dir
def accept_certificate(controller: str, listen: str, advertise: str, roots: Sequence[str], data_dir: Path) -> None:
    """Read the controller's answer to `request-certificate` from standard input and store it."""
    with _sentences():
        membership = enrollment.accept(
            Settings.load(data_dir),
            _text(sys.stdin),
            controller=controller,
            listen=_address(listen, "--listen"),
            advertise=_address(advertise, "--advertise"),
            roots=[_directory(root) for root in roots],
        )
        click.echo(f"Enrolled as {membership.agent_name}.")


@main.command()
@_data_dir
def serve(data_dir: Path) -> None:
    """Serve the controller, until SIGINT or SIGTERM."""
    with _sentences():
        settings = Settings.load(data_dir)
        logging.configure(settings.log_level)
        with asyncio.Runner() as runner:
            runner.run(agent.run(settings))
            # A thread may be blocked on a hanging Engine; closing the loop would wait for it. Operations keep running.
            os._exit(0)


@main.command()
@_data_dir
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object, also where it isn't enrolled.")
def status(data_dir: Path, *, as_json: bool) -> None:
    """Show this agent's identity and the state of Engine and Compose."""
    with _sentences():
        settings = Settings.load(data_dir)
        if as_json:
            click.echo(json.dumps(facts(settings)))
            return
        about = describe(settings)
        width = max(len(name) for name, _ in about)
        for name, value in about:
            click.echo(f"{name:<{width}}  {value}")


@contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except SetupError as error:
        click.echo(f"moorage-agent: {error}", err=True)
        sys.exit(1)


def _text(file: TextIO) -> str:
    try:
        return file.read()
    except UnicodeDecodeError:
        raise SetupError(f"{file.name} holds no join token: it is not text.") from None


def _directory(root: str) -> str:
    if not root:
        raise SetupError("--allow-root is empty: give a directory.")
    return str(Path(root).absolute())


def _address(text: str, option: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise SetupError(f"{option} {text} is no address: give HOST:PORT.")
    return text
