"""Channels to agents: one a server, kept while endpoint and enrolment stay the same."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import grpc.aio

_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    # Each channel has its own connection: another enrolment's must never be reused.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 3000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """What the controller shows to agents; all PEM."""

    ca: bytes
    certificate: bytes
    key: bytes


class AgentChannels:
    """Opens, shares and closes the channels. `identity` is asked at each opening, so a renewed one is used."""

    def __init__(self, identity: Callable[[], ClientIdentity]) -> None:
        self._identity = identity
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}

    def get(self, endpoint: str, agent_name: str) -> grpc.aio.Channel:
        """Return the channel to an endpoint, on which only the holder of that enrolment's name can answer."""
        key = (endpoint, agent_name)
        if key not in self._channels:
            mine = self._identity()
            credentials = grpc.ssl_channel_credentials(mine.ca, mine.key, mine.certificate)
            options = (*_OPTIONS, ("grpc.ssl_target_name_override", agent_name))
            self._channels[key] = grpc.aio.secure_channel(endpoint, credentials, options)
        return self._channels[key]

    async def close(self) -> None:
        """Close all channels; calls under way end as lost contact."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close(None) for channel in channels))
