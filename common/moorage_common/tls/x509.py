"""Certificates of the Moorage authority: keys, signing requests, names."""

import datetime as dt
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CONTROLLER_URI = "moorage://controller"
"""The URI name in a controller's certificate; an agent accepts no other client."""
AGENT_DOMAIN = "agents.moorage"
CERTIFICATE_DAYS = 90


def agent_name(enrollment_id: str) -> str:
    """Return the DNS name of one enrolment, which the controller demands when it dials."""
    return f"{enrollment_id}.{AGENT_DOMAIN}"


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh ECDSA P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the private key as unencrypted PKCS#8 PEM; the caller must store it protected."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read an ECDSA key. Raises ValueError for anything else."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not an elliptic curve key")  # noqa: TRY004 - one error for every unusable key
    return key


def signing_request(key: ec.EllipticCurvePrivateKey, common_name: str) -> bytes:
    """Return a PEM certificate signing request. The authority only uses its public key, and chooses the names."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate_pem: bytes) -> str:
    """Return the SHA-256 of the certificate's DER form, as lower-case hex."""
    der = x509.load_pem_x509_certificate(certificate_pem).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def certificate_of(pem: bytes) -> bytes:
    """Return the first certificate in a PEM text, DER form. Raises ValueError if there is none."""
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def dns_names(certificate_pem: bytes) -> list[str]:
    """Return a certificate's DNS names."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def expires_at(certificate_pem: bytes) -> dt.datetime:
    """Return the end of a certificate's validity, aware, in UTC."""
    return x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc


def validity(certificate_pem: bytes) -> tuple[dt.datetime, dt.datetime]:
    """Return the start and the end of a certificate's validity, aware, in UTC."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def check_issued_certificate(
    certificate_pem: bytes, ca_pem: bytes, key: ec.EllipticCurvePrivateKey, ca_fingerprint: str
) -> None:
    """Check the result of an enrolment: the announced authority, its signature, and this host's own key.

    Raises ValueError with one sentence that names the wrong one.
    """
    if fingerprint(ca_pem) != ca_fingerprint:
        raise ValueError("The certificate authority in the answer is not the one named in the join token.")
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    authority = x509.load_pem_x509_certificate(ca_pem)
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception as error:
        raise ValueError("The certificate in the answer is not signed by the controller's authority.") from error
    if certificate.public_key() != key.public_key():
        raise ValueError("The certificate in the answer is for another key.")
