"""Enrolment: make a key, fetch a certificate with a join token, store the result."""

import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from moorage_common.tls import x509
from moorage_common.tls.join_token import JoinToken
from moorage_common.untrusted import clean_line, parse_json

from moorage_agent.apps.policy import write_policy
from moorage_agent.build import build
from moorage_agent.errors import SetupError
from moorage_agent.identity import certificates
from moorage_agent.settings import Membership, Settings

_TIMEOUT_SECONDS = 30
_LONGEST_ANSWER = 256 << 10
_LONGEST_DETAIL = 500
BOOTSTRAP = "bootstrap"
"""The purpose of a key that a controller requests over SSH."""


def enroll(
    settings: Settings, *, controller: str, token_text: str, listen: str, advertise: str | None, roots: Sequence[str]
) -> Membership:
    """Enrol this host and store the result. Raises SetupError with a sentence; then nothing is changed.

    The key is stored before the request is sent, and the next try with the same token uses it again: the controller
    repeats its answer to the same request, so a lost answer does no harm.
    """
    try:
        token = JoinToken.parse(token_text)
    except ValueError as error:
        raise SetupError(str(error)) from None
    place = _place(controller)
    endpoint = advertise or _reachable_address(place, listen)
    try:
        key = certificates.pending_key(settings, token.id)
        answer = _request(controller, token, key, endpoint)
        certificate, ca, name = (str(answer[field]) for field in ("certificate", "ca", "agentName"))
        membership = Membership(listen=listen, advertise=endpoint, controller=controller, agent_name=name)
        _keep(settings, token.id, membership, (certificate, ca, token.ca_fingerprint), roots)
    except KeyError as error:
        raise SetupError(f"The controller's answer lacks {error}: is {controller} a Moorage controller?") from None
    except ValueError as error:
        raise SetupError(str(error)) from None
    except OSError as error:
        raise SetupError(f"{error.filename or settings.data_dir} can't be written ({error.strerror}).") from None
    return membership


def accept(
    settings: Settings, answer: str, *, controller: str, listen: str, advertise: str, roots: Sequence[str]
) -> Membership:
    """Store a controller's answer to `request-certificate`: JSON with certificate, ca and agentName.

    Raises SetupError with a sentence; then nothing is changed. No token names the authority here: the caller runs
    as root and is trusted to name it.
    """
    try:
        told = parse_json(answer, _LONGEST_ANSWER)
        certificate, ca, name = (str(told[field]) for field in ("certificate", "ca", "agentName"))
        membership = Membership(listen=listen, advertise=advertise, controller=controller, agent_name=name)
        _keep(settings, BOOTSTRAP, membership, (certificate, ca, x509.fingerprint(ca.encode())), roots)
    except (KeyError, TypeError) as error:
        raise SetupError(f"The answer on standard input lacks {error}: is it a controller's?") from None
    except ValueError as error:
        raise SetupError(f"The answer on standard input can't be used: {error}") from None
    except OSError as error:
        raise SetupError(f"{error.filename or settings.data_dir} can't be written ({error.strerror}).") from None
    return membership


def _keep(
    settings: Settings, purpose: str, membership: Membership, issued: tuple[str, str, str], roots: Sequence[str]
) -> None:
    """Store the result; `issued` is the certificate, the authority's (both PEM) and the latter's fingerprint."""
    certificate, ca, fingerprint = issued
    name = membership.agent_name
    certificates.install(settings, purpose, certificate.encode(), ca.encode(), ca_fingerprint=fingerprint, name=name)
    if roots or not settings.policy_file.exists():
        write_policy(settings.policy_file, roots)
    settings.write_membership(membership)
    certificates.forget_pending(settings)


def _request(controller: str, token: JoinToken, key: ec.EllipticCurvePrivateKey, endpoint: str) -> dict[str, Any]:
    csr = x509.signing_request(key, "Moorage agent").decode()
    agent_version = build()
    body = {
        "token": token.proof(csr, endpoint, agent_version),
        "csr": csr,
        "endpoint": endpoint,
        "version": agent_version,
    }
    url = f"{controller.rstrip('/')}/api/enroll"
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as reply:  # noqa: S310 - the scheme was checked
            answer = parse_json(reply.read(_LONGEST_ANSWER + 1), _LONGEST_ANSWER)
    except urllib.error.HTTPError as error:
        raise SetupError(f"The controller refused: {_problem(error)}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise SetupError(f"The controller at {controller} can't be reached, or isn't one: {error}") from None
    if not isinstance(answer, dict):
        raise SetupError(f"{controller} doesn't answer like a Moorage controller.")
    return answer


def _problem(error: urllib.error.HTTPError) -> str:
    try:
        told = parse_json(error.read(_LONGEST_ANSWER + 1), _LONGEST_ANSWER)
        return clean_line(str(told["detail"]), _LONGEST_DETAIL)
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {error.code}"


def _place(controller: str) -> urllib.parse.SplitResult:
    """Parse the controller's URL. Raises SetupError if it isn't valid."""
    with suppress(ValueError):
        place = urllib.parse.urlsplit(controller)
        if place.scheme in {"http", "https"} and place.hostname and place.port != 0:  # reading the port checks it
            return place
    raise SetupError(f"{controller} is not the URL of a controller: it begins with http:// or https:// and a host.")


def _reachable_address(place: urllib.parse.SplitResult, listen: str) -> str:
    """Guess the HOST:PORT at which the controller reaches this host: the local address of the route to it."""
    host, _, port = listen.rpartition(":")
    if host not in {"0.0.0.0", "[::]", ""}:  # noqa: S104 - compared, not bound
        return listen
    try:
        family, kind, _, _, address = socket.getaddrinfo(place.hostname, place.port or 80, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # a datagram socket: nothing is sent
            mine = probe.getsockname()[0]
    except (OSError, UnicodeError) as error:
        raise SetupError(f"{place.geturl()} can't be resolved ({error}): check the URL, or give --advertise.") from None
    return f"[{mine}]:{port}" if ":" in mine else f"{mine}:{port}"
