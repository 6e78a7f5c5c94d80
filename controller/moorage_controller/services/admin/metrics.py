"""The metrics endpoint for Prometheus: this controller's counters, and gauges read from the database."""

import asyncio
import hmac
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version

import structlog
from moorage_common.tls import x509
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily

from moorage_controller.errors import DatabaseUnavailableError, NotAuthenticatedError, NotFoundError
from moorage_controller.services.admin.meters import Meters
from moorage_controller.services.events.feed import Feed
from moorage_controller.services.operations.leases import Leases
from moorage_controller.signals import Signals
from moorage_controller.store.database.database import Database
from moorage_controller.store.tables import status_counts as store
from moorage_controller.store.tables.servers import Server
from moorage_controller.store.tables.status_counts import Counts

log = structlog.get_logger(__name__)

_MOST_VERSIONS = 20
"""Maximum number of version labels, as agents report any version they like; the rest count as `other`."""
_READ_SECONDS = 5.0

Values = dict[tuple[str, ...], float]
Found = tuple[str, str, list[str], Values]
"""A gauge: name, help text, label names, and values by label values."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Sources read at each scrape. `expiries`: ends of the controller's own certificates; `work`: liveness of loops."""

    feed: Feed
    leases: Leases
    expiries: Callable[[], dict[str, datetime]]
    work: Callable[[], dict[str, bool]]


class Metrics:
    """Serves the metrics to callers with the token; an empty token turns them off."""

    def __init__(self, database: Database, signals: Signals, token: str) -> None:
        self._database = database
        self._token = token
        self._parts: Parts
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self.meters = Meters(self._registry)
        database.used.connect(self.meters.transaction)
        signals.operation_settled.connect(self.meters.operation)
        signals.host_checked.connect(self.meters.check)
        signals.auto_stop_polled.connect(self.meters.looked)

    def scrape(self, parts: Parts) -> None:
        """Set the sources to read at each scrape; call it once, after all parts are created."""
        self._parts = parts

    async def show(self, token: str) -> bytes:
        """Return the metrics in Prometheus' text format.

        Raises NotFoundError if they are off, NotAuthenticatedError for any token but METRICS_TOKEN.
        """
        if not self._token:
            raise NotFoundError("metrics_off", "Metrics are off: set METRICS_TOKEN, and show it as a bearer token.")
        if not hmac.compare_digest(token.encode(errors="surrogateescape"), self._token.encode()):
            raise NotAuthenticatedError("bad_token", "Send Authorization: Bearer METRICS_TOKEN.")
        parts = self._parts
        gauges = _of_this_controller(parts)
        try:
            async with asyncio.timeout(_READ_SECONDS), self._database.read() as connection:
                now, counts = await self._database.now(connection), await store.take(connection)
        except (DatabaseUnavailableError, TimeoutError):
            gauges.append(_single("moorage_database_up", "Whether the database answers.", 0))
        else:
            gauges.append(_single("moorage_database_up", "Whether the database answers.", 1))
            gauges += await asyncio.to_thread(_of_the_database, counts, parts, now)
        return await asyncio.to_thread(self._expose, gauges)

    def _expose(self, gauges: Sequence[Found]) -> bytes:
        shown = CollectorRegistry()
        shown.register(_Gauges(gauges))
        return generate_latest(self._registry) + generate_latest(shown)


class _Gauges:
    def __init__(self, gauges: Sequence[Found]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, sentence, labels, values in self._gauges:
            family = GaugeMetricFamily(name, sentence, labels=labels)
            for label_values, value in sorted(values.items()):
                family.add_metric(label_values, value)
            yield family


def _single(name: str, sentence: str, value: float) -> Found:
    return name, sentence, [], {(): value}


def _of_this_controller(parts: Parts) -> list[Found]:
    listeners = "Callers that listen to the events just now."
    return [
        ("moorage_build_info", "The release that runs.", ["version"], {(version("moorage-controller"),): 1}),
        _single("moorage_event_subscribers", listeners, parts.feed.listeners),
        (
            "moorage_background_work_up",
            "Whether a part of the background work is alive.",
            ["work"],
            {(name,): float(alive) for name, alive in parts.work().items()},
        ),
    ]


def _of_the_database(counts: Counts, parts: Parts, now: datetime) -> list[Found]:
    """Return the gauges that are equal on all controllers of one database: aggregate them by max, not sum."""
    late = 0.0 if counts.overdue_since is None else (now - counts.overdue_since).total_seconds()
    ends: Values = {(name,): moment.timestamp() for name, moment in parts.expiries().items()}
    agents = [x509.expires_at(pem.encode()).timestamp() for pem in counts.certificates]
    if agents:
        ends["agents",] = min(agents)
    queued = sum(count for (_, state), count in counts.operations.items() if state == "queued")
    return [
        (
            "moorage_operations_in_flight",
            "Operations that haven't ended.",
            ["kind", "state"],
            {key: float(count) for key, count in counts.operations.items()},
        ),
        _single("moorage_operations_queued", "Operations that wait for their turn.", queued),
        (
            "moorage_operation_leases",
            "Operations in flight by who drives them: this controller, another that is alive, or nobody.",
            ["holder"],
            _holders(counts, parts.leases),
        ),
        _single("moorage_controllers", "Controllers that run on this database.", len(counts.controllers)),
        (
            "moorage_apps",
            "Apps by observed status.",
            ["status"],
            {(status,): float(count) for status, count in counts.apps.items()},
        ),
        _single("moorage_apps_overdue", "Apps that run though their time is over by a minute.", counts.overdue),
        _single("moorage_apps_most_overdue_seconds", "By how much the latest of them is over its time.", late),
        ("moorage_servers", "Servers by way and status.", ["connection", "status"], _servers(counts.servers)),
        ("moorage_agents", "Agents by the version they run.", ["version"], _versions(counts.servers)),
        (
            "moorage_certificate_expiry_timestamp_seconds",
            "When a certificate ends; of the agents' the first to end.",
            ["certificate"],
            ends,
        ),
    ]


def _holders(counts: Counts, leases: Leases) -> Values:
    found: Values = {("this",): 0.0, ("other",): 0.0, ("nobody",): 0.0}
    for driver, count in counts.drivers.items():
        holder = "this" if driver == leases.controller_id else "other" if driver in counts.controllers else "nobody"
        found[holder,] += count
    return found


def _servers(servers: Sequence[Server]) -> Values:
    return dict(Counter((server.connection, server.status) for server in servers))


def _versions(servers: Sequence[Server]) -> Values:
    found = Counter(server.agent_version for server in servers if server.agent_name and server.agent_version)
    most = dict(found.most_common(_MOST_VERSIONS))
    shown: Values = {(name,): float(count) for name, count in most.items()}
    if len(found) > len(most):
        shown["other",] = float(found.total() - sum(most.values()))
    return shown
