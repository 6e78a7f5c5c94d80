"""Renewal of an agent's certificate over three months: on a real agent, with the controller's clock shifted.

A real agent's clock can't be moved, so the controller begins in the past and comes to the present.
"""

import asyncio
from datetime import UTC, datetime, timedelta

from controller_and_agent import Member
from moorage_common.tls import x509
from moorage_lab.waiting import eventually_async
from running_stack import SLEEPER

DAY = 24 * 3600


def identity(member: Member) -> bytes:
    return (member.agent.folder / "data" / "pki" / "agent.pem").read_bytes()


async def test_certificate_is_renewed_at_two_thirds_without_a_restart(member: Member) -> None:
    member.clock.shift(-65 * DAY)
    async with member.controller():
        await member.join()
        before = identity(member)
        name = x509.dns_names(before)
        pid = member.agent.process.identity
        assert x509.expires_at(before) < datetime.now(UTC) + timedelta(days=26)
        app_id = await member.start_app("spared", SLEEPER, 43200)
        member.clock.shift(65 * DAY)
        await eventually_async(
            lambda: x509.expires_at(identity(member)) > datetime.now(UTC) + timedelta(days=89), timeout=60
        )
        assert x509.key_to_pem(x509.key_from_pem(identity(member))) not in before, "the key is another"
        assert x509.dns_names(identity(member)) == name
        assert member.agent.process.identity == pid
        assert not list((member.agent.folder / "data" / "pki").glob("pending-*"))
        # After a restart of both, only the new one exists: the next login uses it.
        await asyncio.to_thread(member.agent.restart)
        member.api = await asyncio.to_thread(member.api.login, "admin", "correct horse battery")
        await member.wait_for(f"/api/servers/{member.server_id}", status="online", connection="agent")
        assert (await member.call("GET", f"/api/apps/{app_id}"))["id"] == app_id


async def test_host_with_expired_certificate_gets_repair_advice(member: Member) -> None:
    member.clock.shift(-100 * DAY)
    async with member.controller():
        await member.make_server()
        await asyncio.to_thread(member.agent.enroll, member.api.url, await member.join_token())
        member.clock.shift(100 * DAY)
        member.api = await asyncio.to_thread(member.api.login, "admin", "correct horse battery")
        path = f"/api/servers/{member.server_id}"

        async def told() -> str:
            detail = str((await member.call("GET", path))["statusDetail"])
            return detail if "expired on" in detail else ""

        sentence = await eventually_async(told, timeout=30, what="the sentence")
        assert f"POST {path}/agent" in sentence
        await asyncio.to_thread(member.agent.process.start)
        await eventually_async(lambda: not member.agent.process.alive, timeout=20, what="the agent's end")
        assert "enrol this host again" in member.agent.process.log_tail(50)
        # A new enrolment is all it needs.
        await asyncio.to_thread(member.agent.enroll, member.api.url, await member.join_token())
        await asyncio.to_thread(member.agent.start)
        shown = await member.wait_for(path, status="online")
        assert (shown["connection"], shown["statusDetail"]) == ("agent", None)
