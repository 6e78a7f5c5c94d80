"""The command line: `moorage-controller serve | migrate`."""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click
import structlog
import uvloop
from moorage_common import logging
from moorage_common.clock import SystemClock

from moorage_controller import settings as settings_module
from moorage_controller.app import Controller, migrate_database
from moorage_controller.errors import StartupError
from moorage_controller.settings import Settings

log = structlog.get_logger(__name__)


@click.group()
def main() -> None:
    """Run Docker Compose apps on many hosts, and have each stopped by itself when its time is over."""


@main.command()
def serve() -> None:
    """Serve the REST API and do the work behind it, until SIGINT or SIGTERM."""
    _run(_serve)


@main.command()
def migrate() -> None:
    """Bring the database to this release's revision."""
    _run(migrate_database)


def _run(work: Callable[[Settings], Coroutine[Any, Any, None]]) -> None:
    try:
        settings = settings_module.load()
        logging.configure(settings.log_level)
        uvloop.run(work(settings))
    except StartupError as error:
        click.echo(f"moorage-controller: {error.sentence} ({error.code})", err=True)
        sys.exit(1)


async def _serve(settings: Settings) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with Controller(settings, SystemClock()) as controller:
        if controller.first_password is not None:
            # Once, and on standard output alone: logs are kept, this is not.
            click.echo(f"The first admin is {settings.admin_username}, the password {controller.first_password}")
        log.info("listening", address=controller.address)
        await ended.wait()
        log.info("stopping")
