"""Errors of the `moorage-agent` command: one sentence, exit code 1, no traceback."""

import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from lone_agent import Desk, LoneAgent
from moorage_common.tls import x509
from moorage_controller.pki.authority import Authority
from moorage_lab.programs.engine import PrivateEngine
from moorage_lab.programs.processes import installed, plain_environment

Run = Callable[..., str]


@pytest.fixture
def refused(engine: PrivateEngine, tmp_path: Path) -> Run:
    """Return a function that runs a failing enrolment or `serve`, and returns its sentence."""

    def run(*words: str | bytes, token: bytes = b"", data: Path | None = None) -> str:
        done = subprocess.run(
            [installed("moorage-agent"), *words, "--data-dir", str(data or tmp_path / "data")],
            input=token,
            env=plain_environment(DOCKER_HOST=engine.host),
            capture_output=True,
            timeout=30,
            check=False,
        )
        said = done.stderr.decode()
        assert (done.returncode, done.stdout) == (1, b""), said
        [sentence] = [line for line in said.splitlines() if line.startswith("moorage-agent: ")]
        assert "Traceback" not in said
        return sentence

    return run


@pytest.fixture
def own(engine: PrivateEngine, desk: Desk, tmp_path: Path) -> Iterator[LoneAgent]:
    """Return an agent that is enrolled, and has ended."""
    made = LoneAgent(tmp_path / "own", engine, desk).start()
    made.process.terminate()
    yield made
    made.clear()


@pytest.mark.parametrize("url", ["http://[::1", "http://x:abc", "http://x:0", "localhost:3000", "http://", "ftp://x"])
def test_invalid_controller_url_is_reported(refused: Run, desk: Desk, tmp_path: Path, url: str) -> None:
    said = refused("enroll", "--controller", url, "--token-file", "-", token=desk.token().encode())
    assert f"{url} is not the URL of a controller" in said
    assert not (tmp_path / "data").exists()


def test_invalid_agent_name_is_reported(refused: Run, desk: Desk) -> None:
    url = f"http://{'a' * 70}.example"
    said = refused("enroll", "--controller", url, "--token-file", "-", token=desk.token().encode())
    assert f"{url} can't be resolved" in said


def test_binary_token_file_is_reported(refused: Run, desk: Desk) -> None:
    assert "is not text" in refused("enroll", "--controller", desk.url, "--token-file", "-", token=b"\xff\xfe")


@pytest.mark.parametrize(("root", "said"), [("", "--allow-root is empty"), (b"/srv/\xff", "is not UTF-8")])
def test_invalid_allowed_root_writes_no_policy(
    refused: Run, desk: Desk, tmp_path: Path, root: str | bytes, said: str
) -> None:
    words = ("enroll", "--controller", desk.url, "--token-file", "-", "--allow-root", root)
    assert said in refused(*words, token=desk.token().encode())
    assert not (tmp_path / "data" / "policy.toml").exists()
    assert not (tmp_path / "data" / "agent.json").exists()


def test_mismatched_identity_files_are_reported(refused: Run, own: LoneAgent) -> None:
    pki = own.data / "pki"
    identity = (pki / "agent.pem").read_bytes()
    (pki / "agent.pem").write_bytes(x509.key_to_pem(x509.new_key()) + identity[identity.index(b"-----BEGIN CERT") :])
    assert "don't belong together" in refused("serve", data=own.data)
    (pki / "agent.pem").write_bytes(identity)
    stranger, _ = Authority.create(datetime.now(UTC))
    (pki / "ca.crt").write_bytes(stranger.certificate_pem)
    assert "don't belong together" in refused("serve", data=own.data)
