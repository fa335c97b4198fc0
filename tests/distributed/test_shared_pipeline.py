"""Clients of several processes with a shared breaker, on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from fake_redis import FakeConnectionFactory, FakeRedisCluster
from fleet_kit import messages_delivered, run_with_fake_redis
from loop_kit import LoopScenario

from resilient_imagen.distributed import coordinator
from resilient_imagen.reasons import Reason

IMAGE = 10.0


@contextlib.asynccontextmanager
async def clients_during_an_outage(
    redis: FakeRedisCluster, count: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[LoopScenario]]:
    """Return connected clients whose breaker opened for 60 seconds."""
    monkeypatch.setattr(
        coordinator, "RedisConnectionFactory", lambda _address: FakeConnectionFactory(redis)
    )
    async with contextlib.AsyncExitStack() as all_of_them:
        scenarios = [LoopScenario("redis://fake", breaker_reset_timeout=60.0) for _ in range(count)]
        for scenario in scenarios:
            await all_of_them.enter_async_context(scenario.client)
            await scenario.client.warm_up()
        await scenarios[0].open_breaker()
        await messages_delivered()
        assert {scenario.state for scenario in scenarios} == {"open"}
        for scenario in scenarios:
            scenario.google.sent.clear()
            scenario.google.latency = IMAGE
        yield scenarios


def request_times(scenarios: list[LoopScenario]) -> list[float]:
    """Return the times of the requests to Google of all clients."""
    return sorted(each.at for scenario in scenarios for each in scenario.google.sent)


@pytest.mark.no_cover
@pytest.mark.parametrize("callers", [1, 3])
def test_concurrent_calls_of_all_clients_wait_for_one_probe(
    callers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another route, the calls of all processes wait for the probe, and are served after
    its success.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with clients_during_an_outage(redis, 3, monkeypatch) as scenarios:
            await asyncio.sleep(67)
            began = asyncio.get_running_loop().time()
            await asyncio.gather(
                *(scenario.ask() for scenario in scenarios for _ in range(callers))
            )
            probe, *later = request_times(scenarios)
            assert probe - began < 0.1
            assert len(later) == 3 * callers - 1
            assert min(later) >= probe + IMAGE
            assert max(later) < probe + IMAGE + 0.1

    run_with_fake_redis(scene)


def test_a_failed_probe_ends_all_waiting_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request is sent, and the error of each call names its cause."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with clients_during_an_outage(redis, 3, monkeypatch) as scenarios:
            await asyncio.sleep(67)
            for scenario in scenarios:
                scenario.google.fail(Reason.OVERLOADED, status=503, latency=IMAGE)
            asking = [asyncio.ensure_future(scenario.ask()) for scenario in scenarios]
            ends = await asyncio.gather(*asking, return_exceptions=True)
            assert len(request_times(scenarios)) == 1
            assert all("503" in str(end) for end in ends)
            assert {scenario.state for scenario in scenarios} == {"open"}

    run_with_fake_redis(scene)
