"""gRPC channels to agents: one per server, reused while its endpoint and enrolment stay the same."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import grpc
import grpc.aio
from moorage_common.rpc.v1.agent_pb2_grpc import AgentStub
from moorage_common.tls.tls import ClientIdentity
from moorage_common.untrusted import KIB, LIMITS, Pace

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.endpoint import parse

_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    # Each channel has its own connection: that of another enrolment must never be reused.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 3000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Limits on unread data in flight from an agent.
    ("grpc.max_receive_message_length", LIMITS.message),
    ("grpc.max_metadata_size", LIMITS.metadata),
    ("grpc.absolute_max_metadata_size", LIMITS.metadata),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 256 * KIB),
    # No service config from DNS: it must not change how the agent is called.
    ("grpc.service_config_disable_resolution", 1),
)


class AgentChannel:
    """A channel whose replies are raw bytes, because gRPC only logs a message that it can't parse.

    `pace` limits the rate at which that agent is read, over all its calls.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.stub = AgentStub(cast("grpc.aio.Channel", self))
        self.pace = Pace()

    def unary_unary(self, method: str, **options: Any) -> Any:  # noqa: ANN401 - as the stub calls it
        """Return a call whose reply is bytes."""
        return self._channel.unary_unary(method, **{**options, "response_deserializer": None})

    def unary_stream(self, method: str, **options: Any) -> Any:  # noqa: ANN401 - as the stub calls it
        """Return a call whose replies are bytes."""
        return self._channel.unary_stream(method, **{**options, "response_deserializer": None})

    async def close(self) -> None:
        """Close it; calls in progress end as lost contact."""
        await self._channel.close(None)


class AgentChannels:
    """Opens, shares and closes the channels. `identity` is called at each use, so a renewed one replaces the old."""

    def __init__(self, identity: Callable[[], ClientIdentity]) -> None:
        self._identity = identity
        self._channels: dict[tuple[str, str], tuple[ClientIdentity, AgentChannel]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, endpoint: str, agent_name: str) -> AgentChannel:
        """Return the channel to an endpoint; its TLS server name is the enrolment's DNS name.

        Raises HostUnreachableError for an invalid endpoint.
        """
        try:
            target = parse(endpoint).target
        except ValueError:
            raise HostUnreachableError(
                "The server's apiEndpoint is no HOST:PORT: change it there, or enrol the host again."
            ) from None
        mine = self._identity()
        identity, channel = self._channels.get((endpoint, agent_name), (None, None))
        if channel is not None and identity is mine:
            return channel
        if channel is not None:
            # Calls on the old channel end as lost contact; their callers retry on the new one.
            task = asyncio.create_task(channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        credentials = grpc.ssl_channel_credentials(mine.ca, mine.key, mine.certificate)
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", agent_name))
        opened = AgentChannel(grpc.aio.secure_channel(target, credentials, options))
        self._channels[endpoint, agent_name] = (mine, opened)
        return opened

    async def close(self) -> None:
        """Close all channels; calls in progress end as lost contact."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close() for _, channel in channels), *self._closing, return_exceptions=True)
