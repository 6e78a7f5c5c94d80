"""The authority: chain, names, purpose and lifetime of its certificates, verified by the x509 library."""

import datetime as dt
import uuid

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from fakes import EPOCH, FakeClock
from moorage_common.tls.x509 import CONTROLLER_URI, agent_name, key_from_pem, new_key, signing_request
from moorage_controller.pki.authority import Authority, public_key_digest
from moorage_controller.pki.identity import ControllerIdentity

AGENT = agent_name(str(uuid.uuid4()))
SOON = EPOCH + dt.timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(EPOCH)[0]


def loaded(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def verify_server(authority: Authority, pem: bytes, name: str, moment: dt.datetime) -> None:
    """Verify as a TLS client does; raises VerificationError."""
    store = Store([loaded(authority.certificate_pem)])
    PolicyBuilder().store(store).time(moment).build_server_verifier(x509.DNSName(name)).verify(loaded(pem), [])


def test_authority_certificate_may_only_sign_certificates(authority: Authority) -> None:
    certificate = loaded(authority.certificate_pem)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.digital_signature) == (True, False)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    certificate.verify_directly_issued_by(certificate)
    assert authority.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()


def test_agent_certificate_is_for_its_key_its_name_and_for_serving(authority: Authority) -> None:
    key = new_key()
    pem = authority.issue_agent(signing_request(key, "root"), AGENT, EPOCH)
    certificate = loaded(pem)
    assert certificate.public_key() == key.public_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName(AGENT)]
    purpose = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purpose) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.not_valid_after_utc - EPOCH == dt.timedelta(days=90)
    # A host whose clock is behind must not take it for one from the future.
    assert EPOCH - certificate.not_valid_before_utc >= dt.timedelta(minutes=5)
    certificate.verify_directly_issued_by(loaded(authority.certificate_pem))


def test_agent_certificate_verifies_only_by_name_within_validity(authority: Authority) -> None:
    pem = authority.issue_agent(signing_request(new_key(), "x"), AGENT, EPOCH)
    verify_server(authority, pem, AGENT, SOON)
    with pytest.raises(VerificationError):
        verify_server(authority, pem, agent_name(str(uuid.uuid4())), SOON)
    with pytest.raises(VerificationError):
        verify_server(authority, pem, AGENT, EPOCH + dt.timedelta(days=91))
    with pytest.raises(VerificationError):
        verify_server(Authority.create(EPOCH)[0], pem, AGENT, SOON)


def test_names_in_certificate_request_are_ignored(authority: Authority) -> None:
    key = new_key()
    wished = x509.SubjectAlternativeName([x509.DNSName("evil"), x509.UniformResourceIdentifier(CONTROLLER_URI)])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "evil")]))
        .add_extension(wished, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    certificate = loaded(authority.issue_agent(request, AGENT, EPOCH))
    assert "evil" not in certificate.subject.rfc4514_string()
    assert list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [
        x509.DNSName(AGENT)
    ]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_controller_certificate_is_for_calling_under_its_uri_name(authority: Authority) -> None:
    pem, key_pem = authority.issue_controller(EPOCH)
    certificate = loaded(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(CONTROLLER_URI)]
    purpose = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purpose) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.public_key() == key_from_pem(key_pem).public_key()
    assert certificate.not_valid_after_utc - EPOCH == dt.timedelta(days=90)


def requests_nobody_should_sign() -> dict[str, bytes]:
    rsa_key = rsa.generate_private_key(65537, 2048)
    p384 = ec.generate_private_key(ec.SECP384R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    good = x509.load_pem_x509_csr(signing_request(new_key(), "x")).public_bytes(serialization.Encoding.DER)
    altered = x509.load_der_x509_csr(good[:-1] + bytes([good[-1] ^ 1]))
    return {
        "nothing": b"",
        "no request": b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "RSA": builder.sign(rsa_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
        "P-384": builder.sign(p384, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
        "another's signature": altered.public_bytes(serialization.Encoding.PEM),
    }


@pytest.mark.parametrize("request_pem", requests_nobody_should_sign().values(), ids=requests_nobody_should_sign())
def test_csr_without_self_signed_p256_key_is_refused(authority: Authority, request_pem: bytes) -> None:
    with pytest.raises(ValueError, match="certificate request"):
        authority.issue_agent(request_pem, AGENT, EPOCH)


def test_enrolled_host_is_recognised_by_its_key() -> None:
    key = new_key()
    assert public_key_digest(signing_request(key, "a")) == public_key_digest(signing_request(key, "b"))
    assert public_key_digest(signing_request(new_key(), "a")) != public_key_digest(signing_request(key, "a"))


def test_controller_identity_is_reused_until_renewal_before_expiry(authority: Authority) -> None:
    clock = FakeClock()
    identity = ControllerIdentity(authority, clock)
    first = identity.current()
    clock.advance(29 * 86_400)
    assert identity.current() is first
    clock.advance(86_400)
    second = identity.current()
    assert second is not first
    assert loaded(second.certificate).not_valid_after_utc - clock.now() == dt.timedelta(days=90)
