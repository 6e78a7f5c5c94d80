"""Channels to agents: one a server, kept while endpoint and enrolment stay the same."""

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio
from moorage_common.tls import ClientIdentity

from moorage_controller.errors import HostUnreachableError
from moorage_controller.hosts.endpoint import parse

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


class AgentChannels:
    """Opens, shares and closes the channels. `identity` is asked at each use, so a renewed one replaces the old."""

    def __init__(self, identity: Callable[[], ClientIdentity]) -> None:
        self._identity = identity
        self._channels: dict[tuple[str, str], tuple[ClientIdentity, grpc.aio.Channel]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, endpoint: str, agent_name: str) -> grpc.aio.Channel:
        """Return the channel to an endpoint, on which only the holder of that enrolment's name can answer.

        Raises HostUnreachableError for an endpoint that is none.
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
            # Calls on the old one end as lost contact, and are taken up again on the new one.
            task = asyncio.create_task(channel.close(None))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        credentials = grpc.ssl_channel_credentials(mine.ca, mine.key, mine.certificate)
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", agent_name))
        opened = grpc.aio.secure_channel(target, credentials, options)
        self._channels[endpoint, agent_name] = (mine, opened)
        return opened

    async def close(self) -> None:
        """Close all channels; calls under way end as lost contact."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close(None) for _, channel in channels), *self._closing, return_exceptions=True)
