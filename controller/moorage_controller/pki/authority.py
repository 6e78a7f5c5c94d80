"""The controller's own certificate authority (ECDSA P-256), for certificates of agents and controllers."""

import datetime as dt
import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from moorage_common.tls.x509 import CERTIFICATE_DAYS, CONTROLLER_URI, fingerprint, key_from_pem, key_to_pem, new_key

_CA_DAYS = 3650
_BACKDATE = dt.timedelta(days=1)
"""A host's clock may be behind, such as by a wrong time zone, and would reject a certificate not valid yet."""


class Authority:
    """Signs certificates of agents and controllers. All data is PEM; times are aware, in UTC."""

    def __init__(self, certificate_pem: bytes, key_pem: bytes) -> None:
        self.certificate_pem = certificate_pem
        self._certificate = x509.load_pem_x509_certificate(certificate_pem)
        self._key = key_from_pem(key_pem)

    @classmethod
    def create(cls, now: dt.datetime) -> "tuple[Authority, bytes]":
        """Create an authority; return it and its key (PEM), which the caller stores sealed."""
        key = new_key()
        name = _name("Moorage authority")
        certificate = (
            _builder(name, name, key.public_key(), now, _CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        key_pem = key_to_pem(key)
        return cls(certificate.public_bytes(serialization.Encoding.PEM), key_pem), key_pem

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the CA certificate, hex; join tokens carry it."""
        return fingerprint(self.certificate_pem)

    @property
    def expires_at(self) -> dt.datetime:
        """The expiry of the CA certificate (aware, in UTC)."""
        return self._certificate.not_valid_after_utc

    def issue_agent(self, csr_pem: bytes, dns_name: str, now: dt.datetime) -> bytes:
        """Issue an agent's certificate for one DNS name. Only the public key is taken from the request.

        Raises ValueError for a request that can't be read, isn't signed by its key, or isn't for a P-256 key.
        """
        names = x509.SubjectAlternativeName([x509.DNSName(dns_name)])
        return self._issue(request_key(csr_pem), dns_name, names, ExtendedKeyUsageOID.SERVER_AUTH, now)

    def issue_controller(self, now: dt.datetime) -> tuple[bytes, bytes]:
        """Return a certificate with the controller's URI name, and its key, which is never stored."""
        key = new_key()
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(CONTROLLER_URI)])
        certificate = self._issue(key.public_key(), "Moorage controller", names, ExtendedKeyUsageOID.CLIENT_AUTH, now)
        return certificate, key_to_pem(key)

    def _issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        common_name: str,
        names: x509.SubjectAlternativeName,
        usage: x509.ObjectIdentifier,
        now: dt.datetime,
    ) -> bytes:
        certificate = (
            _builder(_name(common_name), self._certificate.subject, public_key, now, CERTIFICATE_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def request_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a signing request. Raises ValueError with a sentence for an invalid request."""
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        signed = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature):
        raise ValueError("The certificate request can't be read.") from None
    key = request.public_key()
    if not signed or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("The certificate request must be signed by its own ECDSA P-256 key.")
    return key


def public_key_digest(csr_pem: bytes) -> str:
    """Return the SHA-256 of the request's public key, hex; equal digests mean the same host."""
    der = request_key(csr_pem).public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
