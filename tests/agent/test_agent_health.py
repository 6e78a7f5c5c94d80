"""The standard gRPC health service, accessible to the controller only."""

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lone_agent import LoneAgent

SERVING = health_pb2.HealthCheckResponse.SERVING


async def test_controller_can_watch_agent_health(agent: LoneAgent) -> None:
    async with agent.channel() as channel:
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=10)
        assert (await call.read()).status == SERVING
        call.cancel()


async def test_unknown_service_returns_not_found(agent: LoneAgent) -> None:
    async with agent.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
