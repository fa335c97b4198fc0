"""Whole clients of several processes, on virtual time: the pipeline with a shared breaker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from fake_redis import FakeRedisCluster, SeaDoor
from fleet_kit import news, run_with_fake_redis
from loop_kit import LoopScenario

from resilient_imagen.distributed import coordinator
from resilient_imagen.reasons import Reason

IMAGE = 10.0


@contextlib.asynccontextmanager
async def clients(
    sea: FakeRedisCluster, count: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[LoopScenario]]:
    """So many that have joined, in the middle of an outage: their circuit is open for 60 s."""
    monkeypatch.setattr(coordinator, "RedisConnectionFactory", lambda _address: SeaDoor(sea))
    async with contextlib.AsyncExitStack() as all_of_them:
        worlds = [LoopScenario("redis://sea", breaker_reset_timeout=60.0) for _ in range(count)]
        for world in worlds:
            await all_of_them.enter_async_context(world.client)
            await world.client.warm_up()
        await worlds[0].outage()
        await news()
        assert {world.state for world in worlds} == {"open"}
        for world in worlds:
            world.google.sent.clear()
            world.google.latency = IMAGE
        yield worlds


def sent(worlds: list[LoopScenario]) -> list[float]:
    """When Google was asked, by any of them."""
    return sorted(each.at for world in worlds for each in world.google.sent)


@pytest.mark.parametrize("callers", [1, 3])
def test_one_of_all_who_ask_together_sends_the_probe_and_all_are_served(
    callers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no other route: the others wait for its verdict, in whichever process they are."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with clients(sea, 3, monkeypatch) as worlds:
            await asyncio.sleep(67)
            began = asyncio.get_running_loop().time()
            await asyncio.gather(*(world.ask() for world in worlds for _ in range(callers)))
            probe, *later = sent(worlds)
            assert probe - began < 0.1
            assert len(later) == 3 * callers - 1
            assert min(later) >= probe + IMAGE
            assert max(later) < probe + IMAGE + 0.1

    run_with_fake_redis(scene)


def test_a_probe_that_fails_sends_all_who_waited_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request in all, and everybody hears why."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with clients(sea, 3, monkeypatch) as worlds:
            await asyncio.sleep(67)
            for world in worlds:
                world.google.fail(Reason.OVERLOADED, status=503, latency=IMAGE)
            asking = [asyncio.ensure_future(world.ask()) for world in worlds]
            ends = await asyncio.gather(*asking, return_exceptions=True)
            assert len(sent(worlds)) == 1
            assert all("503" in str(end) for end in ends)
            assert {world.state for world in worlds} == {"open"}

    run_with_fake_redis(scene)
