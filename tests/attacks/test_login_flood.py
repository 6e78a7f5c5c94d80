"""A flood of logins from one customer's network; each costs a quarter of a second of CPU time."""

import asyncio
import itertools
import time
from collections import Counter
from pathlib import Path

import aiohttp
from attacked_controller import REAL, attacked
from factories import ADMIN, PASSWORD, Api, Reply, World
from moorage_lab.waiting import eventually_async

CONNECTIONS = 100
KNOWN, ELSEWHERE = "203.0.113.7", "198.51.100.9"


async def login(api: Api, address: str, username: str = ADMIN, password: str = PASSWORD) -> Reply:
    body = {"username": username, "password": password}
    return await api.post("/api/auth/login", body, X_Forwarded_For=address)


class Flood:
    """Many connections that keep guessing, each time with another name from another /64 of one /48."""

    def __init__(self, world: World, session: aiohttp.ClientSession) -> None:
        self.told: Counter[int] = Counter()
        self.waits: list[int] = []
        self._api = Api(session, world.nobody.url, None)
        self._numbers = itertools.count()
        self._tasks = [asyncio.create_task(self._guess()) for _ in range(CONNECTIONS)]

    async def _guess(self) -> None:
        while True:
            n = next(self._numbers) % 65_536
            reply = await login(self._api, f"2001:db8:7:{n:x}::1", f"name{n}", "wrong")
            self.told[reply.status] += 1
            if reply.status == 429:
                self.waits.append(int(reply.headers["Retry-After"]))
                reply.expect(429, "too_many_requests")
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_login_flood_from_one_48_does_not_delay_admin(tmp_path: Path) -> None:
    async with (
        attacked(tmp_path, cost=REAL, trusted_proxies="127.0.0.0/8") as world,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        (await login(world.nobody, KNOWN)).expect(200)
        flood = Flood(world, session)
        try:
            await eventually_async(lambda: flood.told[429] >= CONNECTIONS, timeout=30, what="the flood at its height")
            waits = []
            for _ in range(4):
                began = time.monotonic()
                (await login(world.nobody, KNOWN)).expect(200)
                waits.append(time.monotonic() - began)
            # The machine runs other tests, too; without a queue each login takes 10 s and more.
            assert min(waits) < 2, waits
            # A login from a new address is queued, but not behind the whole flood.
            began = time.monotonic()
            (await login(world.nobody, ELSEWHERE)).expect(200)
            assert time.monotonic() - began < 20
        finally:
            await flood.stop()
        assert set(flood.told) == {401, 429}
        assert min(flood.waits) >= 1


async def test_login_time_does_not_reveal_user_names(tmp_path: Path) -> None:
    async with attacked(tmp_path, cost=REAL, trusted_proxies="127.0.0.0/8") as world:

        async def cost(username: str, number: int) -> float:
            began = time.monotonic()
            (await login(world.nobody, f"192.0.2.{number}", username, "wrong")).expect(401, "bad_credentials")
            return time.monotonic() - began

        known, unknown = [], []
        for n in range(4):
            known.append(await cost(ADMIN, n))
            unknown.append(await cost("nobody-at-all", n))
    assert min(known) > 0.1
    assert 0.5 < min(known) / min(unknown) < 2
