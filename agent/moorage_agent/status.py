"""`moorage-agent status`: the agent's identity, its policy, the state of its dependencies, running operations."""

from collections.abc import Callable

from moorage_common.clock import SystemClock
from moorage_common.journal.journal import Journal, JournalError
from moorage_common.tls import x509

from moorage_agent.agent import compose_version
from moorage_agent.apps.policy import Policy
from moorage_agent.build import build
from moorage_agent.docker.engine import Engine
from moorage_agent.errors import RefusalError, SetupError
from moorage_agent.identity.certificates import expiry_problem
from moorage_agent.settings import Settings, compose_binary


def describe(settings: Settings) -> list[tuple[str, str]]:
    """Return names and values, in order; a failed part has its reason. Raises SetupError if not enrolled."""
    membership = settings.membership()
    about = [
        ("name", membership.agent_name),
        ("build", build()),
        ("controller", membership.controller),
        ("listens on", membership.listen),
        ("advertised as", membership.advertise),
        ("certificate until", _or_why(lambda: _expiry(settings))),
        ("policy", str(settings.policy_file)),
        ("allowed roots", _or_why(lambda: ", ".join(Policy(settings.policy_file).roots()) or "nothing")),
        ("Engine", _or_why(lambda: Engine(settings.docker_host).facts().version)),
        ("Compose", _or_why(lambda: compose_version(compose_binary()))),
        ("running now", _or_why(lambda: _running(settings))),
    ]
    problem = _or_why(lambda: expiry_problem(settings, SystemClock().now()))
    return [*about, ("problem", problem)] if problem else about


def facts(settings: Settings) -> dict[str, object]:
    """Return the facts for a controller over SSH; if the host isn't enrolled, `problem` has the reason.

    `certificateUntil` is ISO 8601 in UTC, `caFingerprint` the authority's SHA-256 (hex), `running` operations' ids.
    """
    told: dict[str, object] = {"version": build(), "enrolled": False, "problem": None}
    try:
        membership = settings.membership()
        expiry = x509.expires_at(settings.identity_file.read_bytes())
        fingerprint = x509.fingerprint(settings.ca_file.read_bytes())
        told["running"] = [record.operation_id for record in Journal(settings.data_dir).running()]
    except (SetupError, JournalError, OSError, ValueError) as error:
        return {**told, "problem": str(error)}
    return {
        **told,
        "enrolled": True,
        "agentName": membership.agent_name,
        "controller": membership.controller,
        "listen": membership.listen,
        "advertise": membership.advertise,
        "certificateUntil": expiry.isoformat(),
        "caFingerprint": fingerprint,
        "problem": expiry_problem(settings, SystemClock().now()) or None,
    }


def _or_why(part: Callable[[], str]) -> str:
    try:
        return part()
    except (RefusalError, SetupError, JournalError, OSError, ValueError) as error:
        return str(error)


def _expiry(settings: Settings) -> str:
    return f"{x509.expires_at(settings.identity_file.read_bytes()):%Y-%m-%d %H:%M} UTC"


def _running(settings: Settings) -> str:
    found = Journal(settings.data_dir).running()
    return ", ".join(f"{r.operation_id} ({r.spec.get('kind')} in {r.spec.get('cd_path')})" for r in found) or "nothing"
