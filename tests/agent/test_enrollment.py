"""Enrolment through the `moorage-agent` command, against a test controller with a real authority."""

import json
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509 as cx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from lone_agent import Desk
from moorage_common.tls import x509
from moorage_controller.pki.authority import Authority
from moorage_lab.hosts.network import free_port
from moorage_lab.programs.processes import installed, plain_environment

Enroll = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def enroll(desk: Desk, tmp_path: Path) -> Iterator[Enroll]:
    """Return a function that runs `moorage-agent enroll` into tmp_path/data, with the token on standard input."""

    def run(token: str | None = None, *options: str, controller: str | None = None) -> subprocess.CompletedProcess[str]:
        argv = [installed("moorage-agent"), "enroll", "--controller", controller or desk.url, "--token-file", "-"]
        return subprocess.run(
            [*argv, "--data-dir", str(tmp_path / "data"), *options],
            input=desk.token() if token is None else token,
            env=plain_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    desk.requests.clear()
    yield run
    desk.change = lambda answer: answer
    desk.refusal = None


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_enrolment_writes_config_policy_and_identity(desk: Desk, enroll: Enroll, data: Path, tmp_path: Path) -> None:
    token = desk.token()
    done = enroll(token, "--listen", "0.0.0.0:7999", "--allow-root", str(tmp_path / "apps"))
    assert (done.returncode, done.stderr) == (0, "")
    about = json.loads((data / "agent.json").read_text())
    assert about["agent_name"] in done.stdout
    # Derived from the local address of the connection to the controller.
    assert (about["listen"], about["advertise"]) == ("0.0.0.0:7999", "127.0.0.1:7999")
    assert about["controller"] == desk.url
    (request,) = desk.requests
    assert (request["endpoint"], request["version"]) == ("127.0.0.1:7999", "0.1.0")
    certificate, ca = (data / "pki" / "agent.pem").read_bytes(), (data / "pki" / "ca.crt").read_bytes()
    key = x509.key_from_pem((data / "pki" / "agent.pem").read_bytes())
    x509.check_issued_certificate(certificate, ca, key, desk.authority.fingerprint)
    assert x509.dns_names(certificate) == [about["agent_name"]]
    assert oct((data / "pki").stat().st_mode & 0o777) == "0o700"
    assert oct((data / "pki" / "agent.pem").stat().st_mode & 0o777) == "0o600"
    assert sorted(file.name for file in (data / "pki").iterdir()) == ["agent.pem", "ca.crt"]
    assert str(tmp_path / "apps") in (data / "policy.toml").read_text()
    # The token's secret is neither sent nor stored.
    secret = token.split(".")[2]
    kept = [file.read_text() for file in data.rglob("*") if file.is_file()]
    assert not [text for text in (*kept, json.dumps(request), done.stdout) if secret in text]


def test_enrolment_with_lost_reply_can_be_retried(desk: Desk, enroll: Enroll, data: Path) -> None:
    token = desk.token()
    desk.change = lambda _: None
    lost = enroll(token)
    assert lost.returncode == 1
    assert "can't be reached" in lost.stderr
    assert not (data / "agent.json").exists()
    desk.change = lambda answer: answer
    assert enroll(token).returncode == 0
    first, second = desk.requests
    # With the same key the controller recognises the request, and repeats its reply.
    assert _public_key(first["csr"]) == _public_key(second["csr"])


def test_repeated_enrolment_uses_new_key_and_keeps_policy(desk: Desk, enroll: Enroll, data: Path) -> None:
    assert enroll(None, "--allow-root", "/srv/apps").returncode == 0
    key, policy = (data / "pki" / "agent.pem").read_bytes(), (data / "policy.toml").read_bytes()
    assert enroll().returncode == 0
    assert (data / "pki" / "agent.pem").read_bytes() != key
    assert (data / "policy.toml").read_bytes() == policy
    assert len(desk.requests) == 2


def test_enrolment_without_roots_warns_that_nothing_is_allowed(enroll: Enroll, data: Path) -> None:
    done = enroll()
    assert done.returncode == 0
    assert str(data / "policy.toml") in done.stdout
    assert "allowed_roots = [\n]" in (data / "policy.toml").read_text()


def test_controller_refusal_is_shown_verbatim(desk: Desk, enroll: Enroll, data: Path) -> None:
    desk.refusal = (401, "The join token has expired: make a new one for this host.")
    done = enroll()
    assert done.returncode == 1
    assert "The join token has expired: make a new one for this host." in done.stderr
    assert not (data / "agent.json").exists()


def test_authority_other_than_in_token_is_refused(desk: Desk, enroll: Enroll, data: Path) -> None:
    done = enroll(desk.token("0" * 64))
    assert done.returncode == 1
    assert "not the one named in the join token" in done.stderr
    assert not (data / "pki" / "agent.pem").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda answer: answer | {"agentName": "other.agents.moorage"}, "is not for other.agents.moorage"),
        (lambda answer: answer | {"certificate": "nonsense"}, "moorage-agent: "),
        (lambda answer: {"certificate": answer["certificate"]}, "lacks 'ca'"),
        (lambda _: ["a", "list"], "doesn't answer like a Moorage controller"),
    ],
)
def test_invalid_enrolment_reply_writes_no_files(
    desk: Desk, enroll: Enroll, data: Path, change: Callable[[dict[str, str]], object], said: str
) -> None:
    desk.change = change
    done = enroll()
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (data / "agent.json").exists()
    assert not (data / "pki" / "agent.pem").exists()


def test_certificate_of_other_key_or_authority_is_refused(desk: Desk, enroll: Enroll) -> None:
    now = datetime.now(UTC)
    other = x509.signing_request(x509.new_key(), "x")
    desk.change = lambda answer: (
        answer | {"certificate": desk.authority.issue_agent(other, answer["agentName"], now).decode()}
    )
    assert "is for another key" in enroll().stderr
    stranger, _ = Authority.create(now)
    desk.change = lambda answer: (
        answer | {"certificate": stranger.issue_agent(other, answer["agentName"], now).decode()}
    )
    assert "not signed by the controller's authority" in enroll().stderr


@pytest.mark.parametrize(
    ("token", "options", "controller", "said"),
    [
        ("hello", (), None, "This is not a join token"),
        ("", (), None, "This is not a join token"),
        (None, ("--listen", "7443"), None, "--listen 7443 is no address"),
        (None, ("--advertise", "host:99999"), None, "--advertise host:99999 is no address"),
        (None, (), "http://nowhere.invalid", "can't be resolved"),
        (None, (), "file:///etc/passwd", "http:// or https://"),
        (None, ("--advertise", "h:1"), "nonsense", "http:// or https://"),
    ],
)
def test_impossible_enrolment_is_reported_in_a_sentence(
    enroll: Enroll, token: str | None, options: tuple[str, ...], controller: str | None, said: str
) -> None:
    done = enroll(token, *options, controller=controller)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_unreachable_controller_is_reported(enroll: Enroll) -> None:
    done = enroll(controller=f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "can't be reached" in done.stderr


def _public_key(csr: str) -> bytes:
    request = cx.load_pem_x509_csr(csr.encode())
    return request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
