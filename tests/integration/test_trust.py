"""Membership and trust: which hosts may enrol, and which controllers an agent obeys."""

import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.rpc.v1.agent_pb2_grpc import AgentStub
from moorage_common.tls import x509
from moorage_common.tls.join_token import JoinToken
from moorage_controller.pki.authority import Authority
from moorage_lab.api import Api
from moorage_lab.programs.agent import AgentProcess
from moorage_lab.waiting import eventually
from running_stack import SLEEPER, Stack


def _agent_name(agent: AgentProcess) -> str:
    return x509.dns_names((agent.folder / "data" / "pki" / "agent.pem").read_bytes())[0]


def _second_agent(stack: Stack, folder: Path) -> tuple[AgentProcess, str]:
    """Return another host's agent, enrolled for a server of its own, and that server's id."""
    server = stack.api.post("/api/servers", {"name": folder.name, "address": "127.0.0.1"}).expect(201)["id"]
    agent = AgentProcess(folder, stack.engine, allow_roots=[stack.apps])
    agent.enroll(stack.controller.url, stack.join_token(server))
    return agent, str(server)


def _call_as(stack: Stack, certificate: bytes, key: bytes) -> grpc.RpcError:
    """Call the agent with another certificate, and return its refusal."""
    ca = (stack.agent.folder / "data" / "pki" / "ca.crt").read_bytes()
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    options = [("grpc.ssl_target_name_override", _agent_name(stack.agent)), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(stack.agent.address, credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            AgentStub(channel).GetInfo(pb.GetInfoRequest(), timeout=10)
        return refused.value


def test_agent_refuses_other_agents(stack: Stack, tmp_path: Path) -> None:
    other, _ = _second_agent(stack, tmp_path / "other")
    pki = other.folder / "data" / "pki"
    error = _call_as(stack, (pki / "agent.pem").read_bytes(), (pki / "agent.pem").read_bytes())
    # An agent's certificate is a server's: the handshake already turns it away as a client's.
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_agent_refuses_controller_of_other_authority(stack: Stack) -> None:
    stranger, _ = Authority.create(datetime.now(UTC))
    certificate, key = stranger.issue_controller(datetime.now(UTC))
    assert _call_as(stack, certificate, key).code() is grpc.StatusCode.UNAVAILABLE
    assert stack.api.get(f"/api/servers/{stack.server_id}/status").expect(200)["status"] == "online"


def test_agent_refuses_handshake_without_certificate(stack: Stack) -> None:
    context = ssl.create_default_context()
    context.load_verify_locations(stack.agent.folder / "data" / "pki" / "ca.crt")
    context.set_alpn_protocols(["h2"])
    host, port = stack.agent.address.split(":")

    def speak() -> bytes:
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=_agent_name(stack.agent)) as tls,
        ):
            tls.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            return tls.recv(1024)

    with suppress(ssl.SSLError, ConnectionError):
        # With TLS 1.3 a client learns of its refusal only when it reads; no byte of HTTP/2 comes back.
        assert speak() == b""


def test_re_enrolled_host_is_accepted_only_by_its_new_name(stack: Stack, tmp_path: Path) -> None:
    agent, server_id = _second_agent(stack, tmp_path / "twice")
    agent.start()
    path = f"/api/servers/{server_id}"
    eventually(lambda: stack.api.get(path).json["status"] == "online", timeout=20, what="the second agent online")
    old = _agent_name(agent)
    # A second enrolment elsewhere takes over the server: the first certificate is refused from then on.
    successor = AgentProcess(tmp_path / "successor", stack.engine, allow_roots=[stack.apps], port=agent.port)
    successor.enroll(stack.controller.url, stack.join_token(server_id))
    assert _agent_name(successor) != old
    eventually(lambda: stack.api.get(path).json["status"] == "offline", timeout=20, what="the old agent shut out")
    agent.terminate()
    with successor:
        eventually(lambda: stack.api.get(path).json["status"] == "online", timeout=30, what="the new agent online")


def test_join_token_is_accepted_once(stack: Stack, tmp_path: Path) -> None:
    server = stack.api.post("/api/servers", {"name": "once", "address": "127.0.0.1"}).expect(201)["id"]
    token = stack.join_token(server)
    AgentProcess(tmp_path / "first", stack.engine, allow_roots=[]).enroll(stack.controller.url, token)
    thief = AgentProcess(tmp_path / "thief", stack.engine, allow_roots=[])
    with pytest.raises(RuntimeError, match="was used before"):
        thief.enroll(stack.controller.url, token)


def test_newer_join_token_voids_the_older_one(stack: Stack, tmp_path: Path) -> None:
    server = stack.api.post("/api/servers", {"name": "newer", "address": "127.0.0.1"}).expect(201)["id"]
    older, newer = stack.join_token(server), stack.join_token(server)
    host = AgentProcess(tmp_path / "host", stack.engine, allow_roots=[])
    with pytest.raises(RuntimeError, match="unknown or void"):
        host.enroll(stack.controller.url, older)
    host.enroll(stack.controller.url, newer)


def test_foreign_or_altered_join_token_is_refused(stack: Stack, tmp_path: Path) -> None:
    host = AgentProcess(tmp_path / "host", stack.engine, allow_roots=[])
    token = JoinToken.parse(stack.join_token())
    forged = JoinToken.make(token.id, token.ca_fingerprint)
    with pytest.raises(RuntimeError, match="unknown or void"):
        host.enroll(stack.controller.url, str(forged))
    other_authority = JoinToken(token.id, token.secret, "0" * 64)
    with pytest.raises(RuntimeError, match="unknown or void"):
        host.enroll(stack.controller.url, str(other_authority))
    with pytest.raises(RuntimeError, match="not a join token"):
        host.enroll(stack.controller.url, "hello")


def test_expired_login_is_refused(stack: Stack) -> None:
    token = Api(stack.controller.url, "not.a.token")
    assert token.get("/api/apps").expect(401)["code"] == "bad_token"
    assert Api(stack.controller.url).get("/api/apps").expect(401)["code"] == "no_token"


def test_private_key_stays_on_host_with_owner_only_mode(stack: Stack) -> None:
    pki = stack.agent.folder / "data" / "pki"
    assert (pki / "agent.pem").stat().st_mode & 0o777 == 0o600
    assert pki.stat().st_mode & 0o777 == 0o700
    lifetime = x509.expires_at((pki / "agent.pem").read_bytes()) - datetime.now(UTC)
    assert timedelta(days=89) < lifetime <= timedelta(days=90)
    secret = (pki / "agent.pem").read_bytes().splitlines()[1]
    data = stack.controller.folder
    assert not [f for f in data.rglob("*") if f.is_file() and secret in f.read_bytes()]


def test_app_under_root_removed_from_policy_is_refused(stack: Stack) -> None:
    app_id = stack.make_app("ruled-out", SLEEPER)
    policy = stack.agent.folder / "data" / "policy.toml"
    before = policy.read_text()
    policy.write_text("allowed_roots = []\n")
    try:
        assert stack.api.post(f"/api/apps/{app_id}/start").expect(403)["code"] == "path_not_allowed"
    finally:
        policy.write_text(before)
    stack.api.post(f"/api/apps/{app_id}/start").expect(200)
    stack.api.post(f"/api/apps/{app_id}/stop").expect(200)
