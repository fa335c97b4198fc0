"""The open period after a failed probe is the same for all workers."""

from __future__ import annotations

import asyncio

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import (
    Worker,
    messages_delivered,
    run_with_fake_redis,
    started_workers,
    states,
    wait_until_probe_is_due,
)
from loop_kit import LoopScenario, run_loop_scenario, until
from redis_kit import RedisServer

from resilient_imagen.reasons import Reason

pytestmark = pytest.mark.no_cover


def left(worker: Worker) -> float:
    seconds = worker.breaker.metrics().retry_after
    assert seconds is not None
    return seconds


@pytest.mark.parametrize(
    ("seconds", "length"),
    [
        (0.3, 60.0),
        (20.0, 100.0),
        pytest.param(10.0, 60.0, marks=pytest.mark.ci),
        pytest.param(60.0, 300.0, marks=pytest.mark.ci),
    ],
)
def test_the_duration_of_a_failed_probe_determines_the_period_of_all(
    seconds: float, length: float
) -> None:
    """Either worker's probe determines the open period of both, and it does not grow with further
    rounds.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            await wait_until_probe_is_due(workers)
            for prober in (1, 0, 1):
                await workers[prober].request(Reason.OVERLOADED, takes=seconds)
                await messages_delivered()
                assert states(workers) == {"open"}
                for worker in workers:
                    assert left(worker) == pytest.approx(length, abs=0.2)
                await asyncio.sleep(length)
            await workers[0].request()
            await messages_delivered()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("numbers", "length"),
    [({"reset_factor": 0}, 60.0), ({"reset_max": 200.0}, 200.0), ({"reset_factor": 2}, 120.0)],
)
def test_factor_and_maximum_of_the_prober_apply_to_all(
    numbers: dict[str, float], length: float
) -> None:
    """The settings of the worker that sent the probe determine the open period of all."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2, **numbers) as workers:
            await wait_until_probe_is_due(workers)
            await workers[1].request(Reason.OVERLOADED, takes=60.0)
            await messages_delivered()
            for worker in workers:
                assert left(worker) == pytest.approx(length, abs=0.2)

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("hint", "length"),
    [
        (20.0, 100.0),
        (130.0, 130.0),
        pytest.param(90.0, 100.0, marks=pytest.mark.ci),
        pytest.param(5000.0, 600.0, marks=pytest.mark.ci),
    ],
)
def test_the_longer_of_hint_and_probe_duration_applies_to_all(hint: float, length: float) -> None:
    """The longer one is the open period of all workers, and successive hints do not extend it."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            await wait_until_probe_is_due(workers)
            for prober in (0, 1, 0):
                await workers[prober].request(Reason.RATE_LIMITED, takes=20.0, retry_after=hint)
                await messages_delivered()
                assert states(workers) == {"open"}
                for worker in workers:
                    assert left(worker) == pytest.approx(length, abs=0.2)
                await asyncio.sleep(length)

    run_with_fake_redis(scene)


def test_the_probe_that_ends_the_half_open_state_determines_the_period() -> None:
    """A probe that is still in flight on another worker does not affect the open period."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3, half_open_calls=2) as workers:
            await wait_until_probe_is_due(workers)
            slow = asyncio.ensure_future(workers[0].request(Reason.OVERLOADED, takes=55.0))
            await asyncio.sleep(25.0)
            await workers[1].request(Reason.OVERLOADED, takes=20.0)
            await messages_delivered()
            for worker in workers:
                assert left(worker) == pytest.approx(100.0, abs=0.2)
            await slow
            await messages_delivered()
            for worker in workers:
                assert left(worker) == pytest.approx(90.0, abs=0.3)

    run_with_fake_redis(scene)


def test_the_confirming_probe_determines_the_period_of_all() -> None:
    """A hung probe opens its own worker's breaker only.

    The next worker's probe decides for both.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2, probe_deadline=40.0) as workers:
            await wait_until_probe_is_due(workers)
            hung = asyncio.ensure_future(workers[0].request(Reason.TIMEOUT, takes=50.0))
            await asyncio.sleep(40.1)
            assert left(workers[0]) == pytest.approx(200.0, abs=0.2)
            assert workers[1].state == "half_open"
            await workers[1].request(Reason.OVERLOADED, takes=0.3)
            await messages_delivered()
            for worker in workers:
                assert left(worker) == pytest.approx(60.0, abs=0.2)
            await hung

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("reason", "period", "maximum", "adopted"),
    [
        (Reason.RATE_LIMITED, 650.0, 600.0, True),
        (Reason.RATE_LIMITED, 660.0, 600.0, True),
        (Reason.RATE_LIMITED, 661.0, 600.0, False),
        (Reason.QUOTA_EXHAUSTED, 86_400.0, 600.0, True),
        (Reason.QUOTA_EXHAUSTED, 86_401.0, 600.0, False),
        (Reason.QUOTA_EXHAUSTED, 95_000.0, 90_000.0, True),
    ],
)
def test_a_worker_adopts_only_periods_that_its_settings_allow(
    reason: Reason, period: float, maximum: float, adopted: bool
) -> None:
    """The limit is `reset_max` with jitter, or a day after a fatal failure."""

    async def scene(redis: FakeRedisCluster) -> None:
        sender, other = Worker(redis, reset_max=period), Worker(redis, reset_max=maximum)
        try:
            await sender.coordinator.ready()
            await other.coordinator.ready()
            await sender.request(reason, retry_after=period)
            await messages_delivered()
            if adopted:
                assert left(other) == pytest.approx(period, abs=0.2)
            else:
                assert other.breaker.allows_calls()
        finally:
            await sender.coordinator.aclose()
            await other.coordinator.aclose()

    run_with_fake_redis(scene)


@pytest.mark.redis
def test_two_clients_over_redis_agree_on_the_period(server: RedisServer) -> None:
    """A client that sent no probe waits as long as the client whose probe failed."""

    async def scene() -> None:
        one, two = (
            LoopScenario(server.url, breaker_reset_factor=10_000, breaker_reset_max=86_400)
            for _ in range(2)
        )
        async with one.client, two.client:
            await asyncio.gather(one.client.warm_up(), two.client.warm_up())
            await one.open_breaker()
            await until(lambda: {one.state, two.state} == {"open"})
            two.google.fail(Reason.OVERLOADED, status=503, latency=0.1, times=1)
            await until(two.route.breaker.allows_calls)
            with pytest.raises(Exception, match="503"):
                await two.ask()
            await until(lambda: {one.state, two.state} == {"open"})
            first, second = (scenario.route.breaker.metrics() for scenario in (one, two))
            assert first.open_for == pytest.approx(second.open_for, abs=100)
            assert first.open_for is not None
            assert first.open_for >= 1000, "ten thousand times at least a tenth of a second"

    run_loop_scenario(scene())
