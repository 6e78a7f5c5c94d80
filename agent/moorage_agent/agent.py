"""The agent's wiring, in start order."""

import asyncio
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import structlog
from moorage_common import open_files
from moorage_common.clock import SystemClock
from moorage_common.journal.journal import Journal, JournalError
from moorage_common.systemd import notify, prove_alive
from moorage_common.tls import x509

from moorage_agent.apps.directory_reader import DirectoryReader
from moorage_agent.apps.identities import Identities
from moorage_agent.build import build
from moorage_agent.deadlines.dead_man_switch import DeadManSwitch
from moorage_agent.deadlines.deadlines import Deadlines
from moorage_agent.deadlines.state_disk import StateDisk
from moorage_agent.docker.engine import Engine
from moorage_agent.docker.inspection import Inspection
from moorage_agent.docker.observer import Observer
from moorage_agent.docker.watch import Watcher
from moorage_agent.errors import SetupError
from moorage_agent.identity import certificates
from moorage_agent.operations.compose_runner import ComposeRunner
from moorage_agent.operations.scopes import scope_launcher
from moorage_agent.rpc.convert import About
from moorage_agent.rpc.gate import Gate
from moorage_agent.rpc.server import AgentServer
from moorage_agent.rpc.servicer import AgentServicer
from moorage_agent.settings import Settings, compose_binary

log = structlog.get_logger(__name__)

_KEEP_OPERATIONS = timedelta(days=7)
_LOOK_AFTER_SECONDS = 24 * 3600.0
_GRACE_SECONDS = 2.0
_THREADS = 32


async def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; operations outlive the agent. Raises SetupError."""
    membership = settings.membership()
    _check_certificate(settings)
    gate = Gate(settings.data_dir, open_files.raise_limit())
    compose = compose_binary()
    version = compose_version(compose)
    journal = open_journal(settings)
    reader = DirectoryReader(settings.policy_file, compose, environment(settings))
    engine = Engine(settings.docker_host, reader.real_paths)
    observer = Observer(engine)
    reader.guessed_wrong = observer.forget
    identities = Identities(reader)
    inspection = Inspection(engine, observer, identities, settings.docker_socket)
    deadlines = Deadlines(settings.data_dir / "deadlines.json", observer.boot_id)
    deadlines.load()
    runner = ComposeRunner(journal, engine, identities, deadlines, compose, environment(settings))
    disk = StateDisk(settings.data_dir)
    watcher = Watcher(observer, engine, identities, deadlines, disk)
    about = About(version, watcher.boot_id, str(settings.data_dir))
    servicer = AgentServicer(runner, watcher, inspection, deadlines, about, settings)
    server = AgentServer(settings, gate, servicer)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Each call to a hanging Engine holds a thread until its timeout: the journal must still get one.
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="work"))
    reader.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    work = (observer.run(), _look_after(journal, deadlines, settings), prove_alive(), disk.run())
    background = [
        asyncio.create_task(each) for each in (*work, deadlines.run(), DeadManSwitch(deadlines, runner).run())
    ]
    try:
        with suppress(JournalError):  # an unreadable journal is reported to each call about an operation
            await runner.resume_cancels()
        await gate.open(membership.listen)
        await server.start()
        log.info("listening", address=membership.listen, name=membership.agent_name, build=build())
        notify("READY=1")
        await ended.wait()
        log.info("stopping")
        notify("STOPPING=1")
        await server.stop(_GRACE_SECONDS)
    finally:
        await gate.close()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        reader.close()


def open_journal(settings: Settings) -> Journal:
    """Open the journal and make its folders. Raises SetupError."""
    try:
        group = settings.docker_socket.stat().st_gid
    except OSError:
        group = None  # no Engine yet: no group to share with
    journal = Journal(settings.data_dir, group=group, launcher=scope_launcher())
    try:
        journal.prepare()
    except JournalError as error:
        raise SetupError(str(error)) from None
    return journal


def environment(settings: Settings) -> dict[str, str]:
    """Return the source of the commands' clean environment."""
    kept = {name: value for name in ("HOME", "DOCKER_CONFIG") if (value := os.environ.get(name))}
    return {**kept, "DOCKER_HOST": settings.docker_host}


def compose_version(compose: str) -> str:
    """Return the version of Compose. Raises SetupError if it doesn't run."""
    argv = [compose, "version", "--short"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603 - our own argv
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(f"{compose} doesn't run ({error}): install the agent again.") from None
    return done.stdout.strip()


def _check_certificate(settings: Settings) -> None:
    try:
        identity, ca = settings.identity_file.read_bytes(), settings.ca_file.read_bytes()
        key = x509.key_from_pem(identity)
        announced = x509.fingerprint(ca)
    except (OSError, ValueError) as error:
        raise SetupError(f"The agent's certificate or key can't be read ({error}): enrol this host again.") from None
    try:
        x509.check_issued_certificate(identity, ca, key, announced)
    except ValueError:
        # gRPC's error would only say that it can't listen on the address.
        raise SetupError(
            "The agent's certificate, its key and the authority don't belong together: enrol this host again."
        ) from None
    if x509.expires_at(identity) <= SystemClock().now():
        raise SetupError(certificates.expiry_problem(settings, SystemClock().now()))


async def _look_after(journal: Journal, deadlines: Deadlines, settings: Settings) -> None:
    """Daily maintenance: remove old operations, and warn of a certificate about to expire."""
    while True:
        with suppress(SetupError):
            problem = await asyncio.to_thread(certificates.expiry_problem, settings, SystemClock().now())
            if problem:
                log.warning("certificate_expires", problem=problem)
        try:
            removed = await asyncio.to_thread(journal.clean, _KEEP_OPERATIONS, SystemClock().now())
        except JournalError as error:
            log.warning("journal_not_cleaned", error=str(error))
        else:
            log.info("journal_cleaned", removed=len(removed))
            # Operations removed from the journal can't be followed any more.
            for operation_id in removed:
                await deadlines.forget_stop(operation_id)
        await asyncio.sleep(_LOOK_AFTER_SECONDS)
