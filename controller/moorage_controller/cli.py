"""The command line: `moorage-controller serve | migrate | create-user | backup | restore | rotate-key` and so on."""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TextIO

import click
import structlog
import uvloop
from moorage_common import logging
from moorage_common.clock import SystemClock
from moorage_common.systemd import notify, prove_alive

from moorage_controller import commands
from moorage_controller import settings as settings_module
from moorage_controller.app import Controller, migrate_database
from moorage_controller.errors import DatabaseUnavailableError, StartupError
from moorage_controller.settings import Settings

log = structlog.get_logger(__name__)


@click.group()
def main() -> None:
    """Run Docker Compose apps on many hosts, and stop each one automatically when its time is over."""


@main.command()
def serve() -> None:
    """Serve the REST API and run the background work, until SIGINT or SIGTERM."""
    _run(_serve, brief=False)


@main.command()
def healthcheck() -> None:
    """Check that the controller on this machine is ready; exit code 0 or 1. For health checks of containers."""
    try:
        problems = commands.problems(settings_module.load())
    except StartupError as error:
        problems = [error.sentence]
    for sentence in problems:
        click.echo(sentence, err=True)
    sys.exit(1 if problems else 0)


@main.command()
def migrate() -> None:
    """Migrate the database to this release's schema."""
    _run(migrate_database)


@main.command("create-user")
@click.argument("name")
@click.option("--admin", is_flag=True, help="Make an admin; without it, a plain user.")
@click.option(
    "--password-file",
    type=click.File("r", encoding="utf-8"),
    help="File with the password, `-` for standard input; without it one is made and printed once.",
)
def create_user(name: str, password_file: TextIO | None, *, admin: bool) -> None:
    """Create a user, also while the controller runs."""
    given = None if password_file is None else password_file.readline().rstrip("\r\n")

    async def work(settings: Settings) -> None:
        made = await commands.create_account(settings, name, given, "admin" if admin else "user")
        click.echo(f"{name} was made." if made is None else f"{name} was made, with the password {made}")

    _run(work)


@main.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
def back_up(file: Path) -> None:
    """Back up the database to FILE, which must not exist yet, also while the controller runs.

    Secrets stay encrypted in it, and the key isn't included: keep ENCRYPTION_KEY in another place.
    """
    _run(lambda settings: commands.back_up(settings, file, click.echo))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def restore(file: Path) -> None:
    """Restore a backup into an empty SQLite or PostgreSQL database, regardless of the original one.

    It needs the ENCRYPTION_KEY of the original controller. It restores everything or nothing.
    """
    _run(lambda settings: commands.restore(settings, file, click.echo))


@main.command("rotate-key")
def rotate_key() -> None:
    """Encrypt secrets in the database with ENCRYPTION_KEY that are still encrypted with an older key.

    First start every controller with the new ENCRYPTION_KEY, and the old one in ENCRYPTION_KEY_PREVIOUS. Then run this
    with the same two variables. Controllers may keep running, and an interrupted run can be repeated.
    """
    _run(lambda settings: commands.rotate_key(settings, click.echo))


def _run(work: Callable[[Settings], Coroutine[Any, Any, None]], *, brief: bool = True) -> None:
    try:
        settings = settings_module.load()
        _configure_logs(settings, brief=brief)
        uvloop.run(work(settings))
    except StartupError as error:
        click.echo(f"moorage-controller: {error.sentence} ({error.code})", err=True)
        sys.exit(1)
    except DatabaseUnavailableError as error:
        sentence = f"The database can't be used ({error.reason}): check that it runs, and DATABASE_URL."
        click.echo(f"moorage-controller: {sentence} ({error.code})", err=True)
        sys.exit(1)


def _configure_logs(settings: Settings, *, brief: bool) -> None:
    try:
        logging.configure(settings.log_level, file=settings.log_file, brief=brief)
    except OSError as error:
        raise StartupError(
            "log_file",
            f"LOG_FILE {settings.log_file} can't be written to ({error.strerror}): make its folder, for the user that "
            "runs this, or leave LOG_FILE empty.",
        ) from None


async def _serve(settings: Settings) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with Controller(settings, SystemClock()) as controller:
        if controller.first_password is not None:
            # Printed once, and only on standard output, because logs are stored.
            click.echo(f"The first admin is {settings.admin_username}, the password {controller.first_password}")
        log.info("listening", address=controller.address)
        notify("READY=1")
        alive = asyncio.create_task(prove_alive())
        await ended.wait()
        alive.cancel()
        notify("STOPPING=1")
        log.info("stopping")
