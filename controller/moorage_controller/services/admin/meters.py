"""Prometheus counters and histograms of the running controller. All labels have few values.

All durations are in seconds. The values come from signals; no database or host is queried.
"""

from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from moorage_controller.signals import DurationSample, OperationFinished

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_CONNECT = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COMPOSE = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0)
_LATE = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)

_OWN_PASSWORD = "wrong_password"  # noqa: S105 - a code
"""The only authentication failure that is no 401: a user who changes their password is logged in."""


class Meters:
    """The counters and histograms of one controller, in its registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "moorage_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "moorage_http_request_duration_seconds",
            "Seconds until a request was answered; streams, which go on, are left out.",
            ["method", "route"],
            buckets=_REQUEST,
            registry=registry,
        )
        self._problems = Counter("moorage_http_problems", "Errors told to callers.", ["code"], registry=registry)
        self._refused = Counter(
            "moorage_authentication_failures", "Logins and tokens that were refused.", ["reason"], registry=registry
        )
        self._ssh = Histogram(
            "moorage_ssh_connect_duration_seconds",
            "Seconds to open an SSH connection, by result: ok, or the error's code.",
            ["result"],
            buckets=_CONNECT,
            registry=registry,
        )
        self._database = Histogram(
            "moorage_database_transaction_duration_seconds",
            "Seconds of a read or write transaction, waiting for a turn included.",
            ["kind", "result"],
            buckets=_FAST,
            registry=registry,
        )
        self._measure_operations(registry)

    def _measure_operations(self, registry: CollectorRegistry) -> None:
        self._operations = Counter(
            "moorage_operations", "Operations that ended.", ["kind", "result"], registry=registry
        )
        self._compose = Histogram(
            "moorage_operation_duration_seconds",
            "Seconds an operation was at work, mostly Compose's; of those that a restart interrupted none.",
            ["kind", "result"],
            buckets=_COMPOSE,
            registry=registry,
        )
        self._checks = Counter(
            "moorage_status_checks", "Looks at a host: answered, unreachable or timeout.", ["result"], registry=registry
        )
        self._auto_stops = Counter(
            "moorage_auto_stops", "Stops of runs whose time was over, by result.", ["result"], registry=registry
        )
        self._late = Histogram(
            "moorage_auto_stop_lateness_seconds",
            "Seconds from the end of a run's time until nothing of it was left.",
            buckets=_LATE,
            registry=registry,
        )
        self._looked = Gauge(
            "moorage_auto_stop_last_look_timestamp_seconds",
            "When auto-stop last looked for what is due: every 30 seconds at least.",
            registry=registry,
        )

    def request(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count a response; `route` is the route's template, `seconds` is None for a stream."""
        self._requests.labels(method, route, status).inc()
        if seconds is not None:
            self._request_seconds.labels(method, route).observe(seconds)

    def problem(self, status: int, code: str) -> None:
        """Count an error response."""
        self._problems.labels(code).inc()
        if status == HTTPStatus.UNAUTHORIZED or code == _OWN_PASSWORD:
            self._refused.labels(code).inc()

    def ssh_connect(self, done: DurationSample) -> None:
        """Count an SSH connection or a failed one."""
        self._ssh.labels(done.result).observe(done.seconds)

    def transaction(self, done: DurationSample) -> None:
        """Count a transaction."""
        self._database.labels(done.what, done.result).observe(done.seconds)

    def operation(self, settled: OperationFinished) -> None:
        """Count an operation that ended, and the lateness of an auto-stop."""
        self._operations.labels(settled.kind, settled.state).inc()
        if settled.seconds is not None:
            self._compose.labels(settled.kind, settled.state).observe(settled.seconds)
        if settled.auto_stop:
            self._auto_stops.labels(settled.state).inc()
        if settled.late is not None:
            self._late.observe(max(settled.late, 0.0))

    def check(self, result: str) -> None:
        """Count a host check."""
        self._checks.labels(result).inc()

    def looked(self, _: None) -> None:
        """Record the time of auto-stop's last poll."""
        self._looked.set_to_current_time()
