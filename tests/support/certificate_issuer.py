"""The controller's part in a bootstrap: it signs the agent's certificate request, and calls the agent."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import grpc
import grpc.aio
from lone_agent import Caller
from moorage_common.tls import x509
from moorage_controller.pki.authority import Authority


class Issuer:
    """A certificate authority for one test."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        self.authority, _ = Authority.create(now)
        self._certificate, self._key = self.authority.issue_controller(now)

    def answer(self, csr: str) -> str:
        """Return the input of `accept-certificate` for the output of `request-certificate`."""
        name = x509.agent_name(str(uuid4()))
        certificate = self.authority.issue_agent(csr.encode(), name, datetime.now(UTC)).decode()
        ca = self.authority.certificate_pem.decode()
        return json.dumps({"certificate": certificate, "ca": ca, "agentName": name})

    @asynccontextmanager
    async def calls(self, address: str, answer: str) -> AsyncIterator[Caller]:
        """Call the agent at HOST:PORT that accepted that reply."""
        credentials = grpc.ssl_channel_credentials(self.authority.certificate_pem, self._key, self._certificate)
        options = (("grpc.ssl_target_name_override", json.loads(answer)["agentName"]), ("grpc.enable_http_proxy", 0))
        async with grpc.aio.secure_channel(address, credentials, options) as channel:
            await channel.channel_ready()
            yield Caller(channel)
