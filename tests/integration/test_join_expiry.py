"""Expiry of a join token after an hour and of a login after a day; a real agent, the controller's clock shifted."""

import asyncio

import pytest
from controller_and_agent import Member


async def test_join_token_expires_after_an_hour(member: Member) -> None:
    async with member.controller():
        await member.make_server()
        token = await member.join_token()
        member.clock.shift(3601)
        with pytest.raises(RuntimeError, match="has expired"):
            await asyncio.to_thread(member.agent.enroll, member.api.url, token)
        assert (await member.call("GET", f"/api/servers/{member.server_id}"))["connection"] == "none"
        await member.join()


async def test_login_expires_after_a_day(member: Member) -> None:
    async with member.controller():
        member.clock.shift(24 * 3600 - 60)
        await member.call("GET", "/api/auth/verify", expect=200)
        member.clock.shift(61)
        await member.call("GET", "/api/auth/verify", expect=401)
