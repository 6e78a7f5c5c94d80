"""Mutual TLS on every method of the agent: only the controller's certificate is accepted, over TLS 1.3."""

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import grpc
import grpc.aio
import pytest
from cryptography import x509 as cx
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lone_agent import Caller, LoneAgent, code_of
from moorage_common.rpc.v1 import agent_pb2 as pb
from moorage_common.rpc.v1.agent_pb2_grpc import AgentStub
from moorage_common.tls import x509
from moorage_controller.pki.authority import Authority

Identity = tuple[bytes, bytes]
Call = Callable[[grpc.aio.Channel], Awaitable[object]]


async def _first(stream: object) -> object:
    return await stream.read()  # type: ignore[attr-defined]  # the stubs know no reader


CALLS: dict[str, Call] = {
    "GetInfo": lambda channel: AgentStub(channel).GetInfo(pb.GetInfoRequest(), timeout=10),
    "StartOperation": lambda channel: AgentStub(channel).StartOperation(pb.StartOperationRequest(), timeout=10),
    "CancelOperation": lambda channel: AgentStub(channel).CancelOperation(pb.CancelOperationRequest(), timeout=10),
    "FollowOperation": lambda channel: _first(
        AgentStub(channel).FollowOperation(pb.FollowOperationRequest(), timeout=10)
    ),
    "Watch": lambda channel: _first(AgentStub(channel).Watch(pb.WatchRequest(), timeout=10)),
    "PrepareRenewal": lambda channel: AgentStub(channel).PrepareRenewal(pb.PrepareRenewalRequest(), timeout=10),
    "GetApp": lambda channel: AgentStub(channel).GetApp(pb.GetAppRequest(), timeout=10),
    "SetDeadline": lambda channel: AgentStub(channel).SetDeadline(pb.SetDeadlineRequest(), timeout=10),
    "ListProjects": lambda channel: AgentStub(channel).ListProjects(pb.ListProjectsRequest(), timeout=10),
    "Logs": lambda channel: _first(AgentStub(channel).Logs(pb.LogsRequest(), timeout=10)),
    "InstallCertificate": lambda channel: AgentStub(channel).InstallCertificate(
        pb.InstallCertificateRequest(), timeout=10
    ),
    "Check": lambda channel: health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10),
    "HealthWatch": lambda channel: _first(
        health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
    ),
}


def _client_of_the_same_authority(authority: Authority, uri: str) -> Identity:
    """Return a valid client certificate with another name, and its key."""
    key = x509.new_key()
    names = cx.SubjectAlternativeName([cx.UniformResourceIdentifier(uri)])
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = authority._issue(key.public_key(), "Moorage controller", names, usage, dt.datetime.now(dt.UTC))
    return certificate, x509.key_to_pem(key)


@pytest.mark.parametrize("method", CALLS)
async def test_other_client_of_same_authority_is_refused_on_every_method(agent: LoneAgent, method: str) -> None:
    for uri in ("moorage://agent", "moorage://controller/x", "https://controller"):
        identity = _client_of_the_same_authority(agent.desk.authority, uri)
        async with agent.channel(identity) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await CALLS[method](channel)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert code_of(refused.value) == "not_the_controller"


def test_every_rpc_method_is_covered() -> None:
    methods = {m.name for m in pb.DESCRIPTOR.services_by_name["Agent"].methods}
    assert methods <= set(CALLS)


async def test_other_agent_certificate_is_refused(agent: LoneAgent) -> None:
    key = x509.new_key()
    request = x509.signing_request(key, "x")
    certificate = agent.desk.authority.issue_agent(request, "b.agents.moorage", dt.datetime.now(dt.UTC))
    assert await _handshake_fails(agent, (certificate, x509.key_to_pem(key)))


async def test_controller_of_another_authority_is_refused(agent: LoneAgent) -> None:
    stranger, _ = Authority.create(dt.datetime.now(dt.UTC))
    assert await _handshake_fails(agent, stranger.issue_controller(dt.datetime.now(dt.UTC)))


async def test_expired_controller_is_refused(agent: LoneAgent) -> None:
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=200)
    assert await _handshake_fails(agent, agent.desk.authority.issue_controller(long_ago))


async def test_connection_without_certificate_is_refused(agent: LoneAgent) -> None:
    context = _context(agent)
    with suppress(ssl.SSLError, ConnectionError):
        reader, writer = await _connect(agent, context)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        # With TLS 1.3 a client learns of its refusal only when it reads: no byte of HTTP/2 comes back.
        assert await asyncio.wait_for(reader.read(1024), 10) == b""
        writer.close()


async def test_plaintext_connection_is_refused(agent: LoneAgent) -> None:
    async with grpc.aio.insecure_channel(agent.process.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await CALLS["GetInfo"](channel)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_tls_1_2_is_refused_with_a_sentence(agent: LoneAgent) -> None:
    identity = agent.desk.authority.issue_controller(dt.datetime.now(dt.UTC))
    for version, code in ((ssl.TLSVersion.TLSv1_3, None), (ssl.TLSVersion.TLSv1_2, "tls_version")):
        context = _context(agent)
        context.minimum_version = context.maximum_version = version
        (agent.folder / "client.pem").write_bytes(identity[0] + identity[1])
        context.load_cert_chain(agent.folder / "client.pem")
        async with _tunnel(agent, context) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            if code is None:
                await CALLS["GetInfo"](channel)
                continue
            for method in ("GetInfo", "Watch", "Check"):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await CALLS[method](channel)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert code_of(refused.value) == code


async def test_controller_finds_the_agent_healthy(agent: LoneAgent) -> None:
    async with agent.channel() as channel:
        for service in ("", "moorage.agent.v1.Agent"):
            request = health_pb2.HealthCheckRequest(service=service)
            reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_renewed_certificate_is_used_without_a_restart(agent: LoneAgent, caller: Caller) -> None:
    pki = agent.data / "pki"
    before = (pki / "agent.pem").read_bytes()
    key = x509.new_key()
    renewed = agent.desk.authority.issue_agent(x509.signing_request(key, "x"), agent.name, dt.datetime.now(dt.UTC))
    await caller.stub.GetInfo(pb.GetInfoRequest())
    assert x509.certificate_of(await _shown(agent)) == x509.certificate_of(before)
    try:
        (pki / "agent.pem").write_bytes(x509.key_to_pem(key) + renewed)
        assert await _shown(agent) == renewed
        # The existing connection continues, and new ones work as well.
        await caller.stub.GetInfo(pb.GetInfoRequest())
        async with agent.called() as anew:
            await anew.stub.GetInfo(pb.GetInfoRequest(), timeout=10)
    finally:
        (pki / "agent.pem").write_bytes(before)


async def _handshake_fails(agent: LoneAgent, identity: Identity) -> bool:
    async with agent.channel(identity) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await CALLS["GetInfo"](channel)
    return refused.value.code() is grpc.StatusCode.UNAVAILABLE and code_of(refused.value) is None


async def _shown(agent: LoneAgent) -> bytes:
    """Return the certificate that the agent presents on a new connection, as PEM."""
    context = _context(agent)
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    reader, writer = await _connect(agent, context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with suppress(ssl.SSLError, ConnectionError):
        await reader.read()
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _context(agent: LoneAgent) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=agent.desk.authority.certificate_pem.decode())
    context.set_alpn_protocols(["h2"])
    return context


async def _connect(agent: LoneAgent, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", agent.process.port, ssl=context, server_hostname=agent.name)


@asynccontextmanager
async def _tunnel(agent: LoneAgent, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Carry plain connections to the agent inside a TLS of our choice, which gRPC's own client doesn't offer."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await _connect(agent, context)
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
