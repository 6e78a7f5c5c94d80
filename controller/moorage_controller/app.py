"""All wiring, in the order in which things start; they stop in the reverse order."""

import ssl
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from aiohttp import web
from moorage_common import open_files
from moorage_common.clock import Clock, SystemClock

from moorage_controller import settings as settings_module
from moorage_controller.api.admin import events
from moorage_controller.api.http import middleware
from moorage_controller.api.http.call import Services
from moorage_controller.api.http.http_edge import HttpEdge
from moorage_controller.api.http.proxies import TrustedProxies
from moorage_controller.auth.passwords import Passwords
from moorage_controller.auth.rate_limit import budgets
from moorage_controller.auth.stream_shares import StreamShares
from moorage_controller.connections import Limits, Listener
from moorage_controller.data_folder import lock
from moorage_controller.database import open_database
from moorage_controller.errors import StartupError
from moorage_controller.hosts.choose import TransportFactory
from moorage_controller.hosts.pools import AgentChannels
from moorage_controller.hosts.ssh.session.pool import SshPool
from moorage_controller.hosts.transport import Hosts
from moorage_controller.https import Certificates
from moorage_controller.pki.authority import Authority
from moorage_controller.pki.identity import ControllerIdentity
from moorage_controller.services.accounts.accounts import Accounts
from moorage_controller.services.accounts.api_tokens import ApiTokens
from moorage_controller.services.accounts.users import Users
from moorage_controller.services.admin.health import Health
from moorage_controller.services.admin.history import History, Keeps
from moorage_controller.services.admin.metrics import Metrics, Parts
from moorage_controller.services.admin.retention import Retention
from moorage_controller.services.agents.agents import Agents
from moorage_controller.services.agents.bootstrap import Bootstrap
from moorage_controller.services.agents.certificates import Certificates as CertificateRenewal
from moorage_controller.services.agents.enrollment import Enrollments, load_authority
from moorage_controller.services.agents.renewal import Renewals
from moorage_controller.services.audit.audit_archive import AuditArchive
from moorage_controller.services.audit.audit_log import AuditLog
from moorage_controller.services.events.feed import Feed
from moorage_controller.services.fleet.checks import LOGIN_SECONDS, Checks
from moorage_controller.services.fleet.credentials import Credentials
from moorage_controller.services.fleet.directories import Directories
from moorage_controller.services.fleet.host_keys import HostKeys, PinnedKeys
from moorage_controller.services.fleet.host_watcher import HostWatcher
from moorage_controller.services.fleet.inspection import Inspection
from moorage_controller.services.fleet.observations import Observations
from moorage_controller.services.fleet.projects import Projects
from moorage_controller.services.fleet.servers import Servers
from moorage_controller.services.operations.leases import Leases
from moorage_controller.services.operations.operation_runner import Limits as OperationLimits
from moorage_controller.services.operations.operation_tasks import OperationTasks
from moorage_controller.services.operations.operations import Operations
from moorage_controller.services.operations.orphan_recovery import OrphanRecovery
from moorage_controller.services.operations.output_reader import OutputReader
from moorage_controller.services.operations.queue import Queue
from moorage_controller.services.periodic import Loop
from moorage_controller.services.runs.apps import Apps
from moorage_controller.services.runs.auto_stop import AutoStop
from moorage_controller.services.runs.clock_jumps import ClockJumpGuard
from moorage_controller.services.runs.deadline_sync import DeadlineSync
from moorage_controller.services.runs.extensions import Extensions
from moorage_controller.services.runs.run_expiry import RunExpiry
from moorage_controller.services.runs.transitions import Rules
from moorage_controller.settings import Settings
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.database.encryption import Keyring, UndecryptableError
from moorage_controller.store.database.migrate import migrate, require_current
from moorage_controller.store.database.version import DatabaseVersion
from moorage_controller.store.tables.operations import AGENT_KINDS

_SHUTDOWN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Base:
    """The parts that all others use."""

    settings: Settings
    clock: Clock
    database: Database
    keyring: Keyring
    authority: Authority
    signals: Signals
    metrics: Metrics
    channels: AgentChannels
    credentials: Credentials
    pool: SshPool
    hosts: Hosts
    limits: OperationLimits


@dataclass(frozen=True, slots=True)
class _Work:
    """The parts that run operations and keep deadlines."""

    observations: Observations
    checks: Checks
    leases: Leases
    tasks: OperationTasks
    operations: Operations
    clock_jumps: ClockJumpGuard
    deadlines: DeadlineSync
    enrollments: Enrollments


@dataclass(frozen=True, slots=True)
class _Accounts:
    """The parts that authenticate users."""

    users: Users
    accounts: Accounts
    tokens: ApiTokens


class Controller:
    """A controller from `async with` to its end. Raises StartupError or DatabaseUnavailableError where it can't start.

    `first_password` is the first admin's, when it was made here just now; `address` where it listens. `hosts` makes the
    ways to hosts out of the channels; tests of faults bring their own. `clock_decides` is as `Database` has it.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        hosts: Callable[[AgentChannels, SshPool], Hosts] = TransportFactory,
        *,
        clock_decides: bool = False,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._clock_decides = clock_decides
        self._make_hosts = hosts
        self._stack = AsyncExitStack()
        self._certificates: Certificates | None = None
        self.first_password: str | None = None
        self.address = ""

    async def __aenter__(self) -> Self:
        """Start everything; what did start is stopped again when something later fails."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything. Operations go on on their hosts; the next start takes them up."""
        await self._stack.aclose()

    async def _start(self) -> None:
        base = await self._open_base()
        work = self._open_operations(base)
        accounts = await self._open_accounts(base)
        feed = Feed(base.database, events.show)
        await feed.open()
        loops = self._loops(base, work, feed)
        services = _services(base, work, accounts, feed, loops)
        base.metrics.scrape(
            Parts(
                feed,
                work.leases,
                lambda: self._expiries(base.authority),
                lambda: {loop.name: loop.alive for loop in loops},
            )
        )
        await self._begin(work, loops)
        version = DatabaseVersion(base.database)
        await version.open()
        self._stack.push_async_callback(version.close)
        await self._listen(middleware.build(services, HttpEdge(base.settings.origins, base.settings.proxies, version)))

    async def _open_base(self) -> _Base:
        settings, clock = self._settings, self._clock
        settings_module.prepare_data_dir(settings)
        self._stack.callback(lock(settings))
        database = await self._open_database()
        keyring = _keyring(settings)
        try:
            authority = await load_authority(database, keyring)
        except UndecryptableError as error:
            raise StartupError("undecryptable_secret", str(error)) from None
        signals = Signals()
        metrics = Metrics(database, signals, settings.metrics_token)
        channels = AgentChannels(ControllerIdentity(authority, clock).current)
        self._stack.push_async_callback(channels.close)
        credentials = Credentials(database, keyring)
        pool = SshPool(
            credentials.access_of,
            PinnedKeys(database).pin,
            login_shell_seconds=settings.ssh_login_shell_seconds,
        )
        pool.tried.connect(metrics.meters.ssh_connect)
        self._stack.push_async_callback(pool.close)
        return _Base(
            settings=settings,
            clock=clock,
            database=database,
            keyring=keyring,
            authority=authority,
            signals=signals,
            metrics=metrics,
            channels=channels,
            credentials=credentials,
            pool=pool,
            hosts=self._make_hosts(channels, pool),
            limits=_limits(settings),
        )

    def _open_operations(self, base: _Base) -> _Work:
        database, hosts, signals, clock = base.database, base.hosts, base.signals, base.clock
        observations = Observations(database, signals, base.limits.runs)
        seconds = base.settings.ssh_login_shell_seconds + LOGIN_SECONDS
        checks = Checks(database, hosts, observations, signals, clock, seconds=seconds)
        self._stack.push_async_callback(checks.close)
        leases = Leases(database)
        self._stack.push_async_callback(leases.unregister)
        limits, queue = base.limits, _queue(base.settings)
        tasks = OperationTasks(database, hosts, observations, signals, clock, limits=limits, queue=queue)
        operations = Operations(database, hosts, clock, leases, tasks, limits=limits, queue=queue)
        clock_jumps = ClockJumpGuard(database, clock, leases)
        deadlines = DeadlineSync(database, hosts, clock_jumps, signals, clock)
        self._stack.push_async_callback(deadlines.close)
        enrollments = Enrollments(database, base.keyring, base.authority, signals)
        bundle, url = base.settings.moorage_agent_bundle, base.settings.base_url
        bootstrap = Bootstrap(database, enrollments, base.pool, base.channels, signals, clock, bundle, url)
        tasks.register_runner(AGENT_KINDS, bootstrap.run)
        return _Work(observations, checks, leases, tasks, operations, clock_jumps, deadlines, enrollments)

    async def _open_accounts(self, base: _Base) -> _Accounts:
        settings, tokens = base.settings, ApiTokens(base.database)
        passwords = await self._stack.enter_async_context(aclosing(Passwords()))
        users = Users(base.database, settings_module.secret(settings, "jwt_secret"), tokens, passwords)
        self.first_password = await users.ensure_first_admin(settings.admin_username, settings.admin_password)
        return _Accounts(users, Accounts(base.database, passwords), tokens)

    @staticmethod
    def _loops(base: _Base, work: _Work, feed: Feed) -> Sequence[Loop]:
        database, signals, clock = base.database, base.signals, base.clock
        watcher = HostWatcher(database, base.hosts, work.observations, work.operations, work.deadlines, signals, clock)
        renewal = CertificateRenewal(Renewals(database, base.authority, base.channels), clock)
        expiry = RunExpiry(database, work.operations, base.limits.runs)
        loops = [
            Loop("feed", feed.run, clock),
            Loop("host-watcher", watcher.run, clock),
            Loop("certificates", renewal.run, clock),
            Loop("retention", _retention(database, base.settings, clock).run, clock),
            Loop("auto-stop", AutoStop(expiry, work.clock_jumps, signals, clock).run, clock),
        ]
        if database.is_shared:
            loops.append(Loop("take-over", OrphanRecovery(work.operations, work.clock_jumps).run, clock))
        return loops

    async def _begin(self, work: _Work, loops: Sequence[Loop]) -> None:
        # What was in flight comes first: auto-stop must not act on an app whose start is still unfinished.
        self._stack.push_async_callback(work.tasks.close)
        await work.operations.recover()
        for loop in loops:
            loop.start()
            self._stack.push_async_callback(loop.stop)

    def _expiries(self, authority: Authority) -> dict[str, datetime]:
        found = {"authority": authority.expires_at}
        https = None if self._certificates is None else self._certificates.expires_at()
        return found if https is None else {**found, "https": https}

    async def _open_database(self) -> Database:
        settings = self._settings
        database = open_database(settings, self._clock, clock_decides=self._clock_decides)
        self._stack.push_async_callback(database.close)
        # Other controllers may run on PostgreSQL: when to migrate is for somebody to decide who knows of them.
        await (require_current(database) if settings.sqlite_path is None else migrate(database))
        return database

    async def _listen(self, application: web.Application) -> None:
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        assert runner.server is not None, "it was set up"
        trusts = TrustedProxies(self._settings.proxies).trusts
        listener = Listener(runner.server, Limits.of_files(open_files.raise_limit()), trusts, self._tls())
        try:
            host, port = await listener.open(self._settings.host, self._settings.port)
        except OSError as error:
            raise StartupError(
                "address_in_use",
                f"{self._settings.host}:{self._settings.port} can't be listened on ({error.strerror}): "
                "set HOST or PORT to another, or stop what uses it.",
            ) from None
        self._stack.push_async_callback(listener.close)
        self.address = f"{host}:{port}"

    def _tls(self) -> ssl.SSLContext | None:
        certificate, key = self._settings.tls_cert_file, self._settings.tls_key_file
        if certificate is None or key is None:
            return None
        certificates = self._certificates = Certificates(certificate, key, self._clock)
        loop = Loop("tls-files", certificates.run, self._clock)
        loop.start()
        self._stack.push_async_callback(loop.stop)
        return certificates.context


def _services(base: _Base, work: _Work, accounts: _Accounts, feed: Feed, loops: Sequence[Loop]) -> Services:
    database, hosts, signals, rules = base.database, base.hosts, base.signals, base.limits.runs
    shares = StreamShares()
    directories = Directories(database, hosts)
    return Services(
        users=accounts.users,
        servers=Servers(database, signals, base.credentials, work.checks),
        checks=work.checks,
        host_keys=HostKeys(database, hosts, signals),
        projects=Projects(database, signals),
        apps=Apps(database, work.operations, work.deadlines, directories, signals, rules),
        extensions=Extensions(database, work.deadlines, work.clock_jumps, signals, rules),
        operations=work.operations,
        outputs=OutputReader(database, signals, base.clock),
        feed=feed,
        inspection=Inspection(database, hosts, shares),
        enrollments=work.enrollments,
        agents=Agents(database, work.operations),
        audit_log=AuditLog(database),
        health=Health(database, lambda: [loop.name for loop in loops if not loop.alive]),
        metrics=base.metrics,
        base_url=base.settings.base_url,
        accounts=accounts.accounts,
        api_tokens=accounts.tokens,
        fingerprints=base.keyring.fingerprints,
        rate_limits=budgets(base.settings.rate_limit_per_minute, base.clock),
        stream_shares=shares,
    )


def _limits(settings: Settings) -> OperationLimits:
    return OperationLimits(
        total=timedelta(minutes=settings.operation_limit_minutes),
        no_progress=timedelta(minutes=settings.operation_no_progress_minutes),
        runs=_rules(settings),
    )


def _rules(settings: Settings) -> Rules:
    warnings = tuple(timedelta(minutes=minutes) for minutes in settings.warnings)
    return Rules(timedelta(minutes=settings.max_run_minutes), warnings)


def _queue(settings: Settings) -> Queue:
    return Queue(on_a_host=settings.operations_per_host, in_all=settings.operations_at_once)


def _retention(database: Database, settings: Settings, clock: Clock) -> Retention:
    keep = timedelta(days=settings.audit_days) if settings.audit_days else None
    archive = AuditArchive(database, settings.moorage_data_dir / "audit", keep)
    return Retention(History(database, _keeps(settings)), archive, clock)


def _keeps(settings: Settings) -> Keeps:
    return Keeps(
        operations=timedelta(days=settings.operation_history_days),
        most_operations=settings.operation_history_most,
        output=timedelta(days=settings.operation_output_days),
    )


def _keyring(settings: Settings) -> Keyring:
    return Keyring([settings_module.secret(settings, "encryption_key"), *settings.previous_keys])


async def migrate_database(settings: Settings) -> None:
    """Bring the database to this release's revision. Raises StartupError, DatabaseUnavailableError."""
    settings_module.prepare_data_dir(settings)
    release = lock(settings)
    database = open_database(settings, SystemClock())
    try:
        await migrate(database)
    finally:
        await database.close()
        release()
