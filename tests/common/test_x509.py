"""Keys, certificate requests, and the checks of an enrolment reply."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from moorage_common.clock import SystemClock
from moorage_common.tls.x509 import (
    agent_name,
    check_issued_certificate,
    dns_names,
    expires_at,
    fingerprint,
    key_from_pem,
    key_to_pem,
    new_key,
    signing_request,
)

END = SystemClock().now().replace(microsecond=0) + dt.timedelta(days=90)


def certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    names: list[str] | None = None,
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(END - dt.timedelta(days=91))
        .not_valid_after(END)
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_key_survives_pem_serialisation() -> None:
    key = new_key()
    assert key.curve.name == "secp256r1"
    assert key_from_pem(key_to_pem(key)).private_numbers() == key.private_numbers()


def test_unsupported_key_type_is_refused() -> None:
    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for text in (pem, b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(ValueError, match=r"\w"):
            key_from_pem(text)


def test_request_is_signed_by_its_key() -> None:
    key = new_key()
    request = x509.load_pem_x509_csr(signing_request(key, "host-1"))
    assert request.is_signature_valid
    assert request.public_key() == key.public_key()


def test_certificate_names_and_expiry_are_read() -> None:
    key = new_key()
    name = agent_name("4f1c")
    pem = certificate("agent", key, "ca", new_key(), [name, "other"])
    assert name == "4f1c.agents.moorage"
    assert dns_names(pem) == [name, "other"]
    assert dns_names(certificate("agent", key, "ca", new_key())) == []
    assert expires_at(pem) == END
    assert fingerprint(pem) == x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()


def test_only_certificate_of_pinned_authority_for_own_key_is_accepted() -> None:
    ca_key, key = new_key(), new_key()
    ca = certificate("ca", ca_key, "ca", ca_key)
    good = certificate("agent", key, "ca", ca_key)
    check_issued_certificate(good, ca, key, fingerprint(ca))

    impostor_key = new_key()
    impostor = certificate("ca", impostor_key, "ca", impostor_key)
    with pytest.raises(ValueError, match="not the one named in the join token"):
        check_issued_certificate(good, impostor, key, fingerprint(ca))
    with pytest.raises(ValueError, match="not signed by the controller's authority"):
        check_issued_certificate(certificate("agent", key, "ca", impostor_key), ca, key, fingerprint(ca))
    with pytest.raises(ValueError, match="for another key"):
        check_issued_certificate(good, ca, new_key(), fingerprint(ca))
