"""This agent's key and certificate: requested, checked, and installed together or not at all.

The key is made here and never leaves the host. A request's key is kept as pending until its certificate arrives, so
that a request repeated after a lost answer or a crash is for the same key.
"""

from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from moorage_common.files import write_atomic
from moorage_common.tls import x509

from moorage_agent.errors import SetupError
from moorage_agent.settings import Settings

RENEWAL = "renewal"
"""The purpose of a key that the controller requests over gRPC."""
_WARN_BEFORE = timedelta(days=10)


def pending_key(settings: Settings, purpose: str) -> ec.EllipticCurvePrivateKey:
    """Return the pending key of a certificate request; make one if there is none. Raises OSError, ValueError.

    `purpose` names the kind of request: different purposes have different keys.
    """
    kept = settings.pending_key_file(purpose)
    if kept.exists():
        return x509.key_from_pem(kept.read_bytes())
    key = x509.new_key()
    write_atomic(kept, x509.key_to_pem(key), mode=0o600)
    return key


def request(settings: Settings, purpose: str) -> bytes:
    """Return a signing request (PEM) for the pending key. Raises OSError, ValueError."""
    return x509.signing_request(pending_key(settings, purpose), "Moorage agent")


def install(settings: Settings, purpose: str, certificate: bytes, ca: bytes, *, ca_fingerprint: str, name: str) -> None:
    """Install a certificate (PEM) with the pending key of that purpose; the next handshake presents it.

    Raises ValueError with a sentence unless the authority of that fingerprint signed it for that key and name.
    """
    key = pending_key(settings, purpose)
    x509.check_issued_certificate(certificate, ca, key, ca_fingerprint)
    if name not in x509.dns_names(certificate):
        raise ValueError(f"The certificate in the answer is not for {name}: ask the controller's admin.")
    write_atomic(settings.ca_file, ca, mode=0o644)
    # One file, so that key and certificate are replaced atomically.
    write_atomic(settings.identity_file, x509.key_to_pem(key) + certificate, mode=0o600)


def forget_pending(settings: Settings) -> None:
    """Remove the pending keys of all requests; call it when the result of an enrolment is stored."""
    for left in settings.identity_file.parent.glob("pending-*.key"):
        left.unlink(missing_ok=True)


def renewed(settings: Settings, certificate: bytes) -> None:
    """Install a renewal, which must be from our own authority, for our own name. Raises ValueError, SetupError."""
    name = settings.membership().agent_name
    current = settings.identity_file.read_bytes()
    if x509.certificate_of(current) == x509.certificate_of(certificate):
        return  # a repeat: the answer to the first call was lost
    ca = settings.ca_file.read_bytes()
    install(settings, RENEWAL, certificate, ca, ca_fingerprint=x509.fingerprint(ca), name=name)
    settings.pending_key_file(RENEWAL).unlink(missing_ok=True)


def expiry_problem(settings: Settings, now: datetime) -> str:
    """Return one sentence if the certificate has expired, or will within ten days; else an empty string.

    Raises SetupError if it can't be read.
    """
    try:
        expiry = x509.expires_at(settings.identity_file.read_bytes())
    except (OSError, ValueError) as error:
        raise SetupError(f"The agent's certificate can't be read ({error}): enrol this host again.") from None
    if expiry <= now:
        return (
            f"The agent's certificate expired on {expiry:%Y-%m-%d %H:%M} UTC: install the agent again from the "
            "controller (POST /api/servers/ID/agent), or enrol this host again."
        )
    if expiry - now <= _WARN_BEFORE:
        return (
            f"The agent's certificate expires on {expiry:%Y-%m-%d %H:%M} UTC: the controller renews it as soon as it "
            "reaches this host."
        )
    return ""
