"""The open period after a failed probe is the same for all workers, whichever sent the probe."""

from __future__ import annotations

import asyncio

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import Worker, news, opening_over, run_with_fake_redis, started_workers, states
from loop_kit import LoopScenario, run_loop_scenario, until
from redis_kit import RedisServer

from resilient_imagen.reasons import Reason


def left(worker: Worker) -> float:
    seconds = worker.gate.metrics().retry_after
    assert seconds is not None
    return seconds


@pytest.mark.parametrize(
    ("seconds", "length"), [(0.3, 60.0), (10.0, 60.0), (20.0, 100.0), (60.0, 300.0)]
)
def test_the_duration_of_the_probe_counts_for_all(seconds: float, length: float) -> None:
    """Either worker's probe determines the period of both, round after round, without growth."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            await opening_over(workers)
            for prober in (1, 0, 1):
                await workers[prober].request(Reason.OVERLOADED, takes=seconds)
                await news()
                assert states(workers) == {"open"}
                for worker in workers:
                    assert left(worker) == pytest.approx(length, abs=0.2)
                await asyncio.sleep(length)
            await workers[0].request()
            await news()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("numbers", "length"),
    [({"reset_factor": 0}, 60.0), ({"reset_max": 200.0}, 200.0), ({"reset_factor": 2}, 120.0)],
)
def test_factor_and_maximum_apply_to_all(numbers: dict[str, float], length: float) -> None:
    """The settings of the worker that sent the probe determine the period."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2, **numbers) as workers:
            await opening_over(workers)
            await workers[1].request(Reason.OVERLOADED, takes=60.0)
            await news()
            for worker in workers:
                assert left(worker) == pytest.approx(length, abs=0.2)

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("hint", "length"), [(20.0, 100.0), (90.0, 100.0), (130.0, 130.0), (5000.0, 600.0)]
)
def test_a_hint_to_a_probe_competes_with_its_duration_for_all(hint: float, length: float) -> None:
    """The longer of both is the period of all workers; hints in a row lengthen nothing."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            await opening_over(workers)
            for prober in (0, 1, 0):
                await workers[prober].request(Reason.RATE_LIMITED, takes=20.0, retry_after=hint)
                await news()
                assert states(workers) == {"open"}
                for worker in workers:
                    assert left(worker) == pytest.approx(length, abs=0.2)
                await asyncio.sleep(length)

    run_with_fake_redis(scene)


def test_of_several_probes_the_one_that_ends_the_round_counts_for_all() -> None:
    """A probe that is still in flight on another worker does not count."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3, half_open_calls=2) as workers:
            await opening_over(workers)
            slow = asyncio.ensure_future(workers[0].request(Reason.OVERLOADED, takes=55.0))
            await asyncio.sleep(25.0)
            await workers[1].request(Reason.OVERLOADED, takes=20.0)
            await news()
            for worker in workers:
                assert left(worker) == pytest.approx(100.0, abs=0.2)
            await slow
            await news()
            for worker in workers:
                assert left(worker) == pytest.approx(90.0, abs=0.3)

    run_with_fake_redis(scene)


def test_the_second_opinion_determines_the_period_of_all() -> None:
    """A hung probe opens its own worker's breaker; the next worker's probe decides for both."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2, probe_deadline=40.0) as workers:
            await opening_over(workers)
            hung = asyncio.ensure_future(workers[0].request(Reason.TIMEOUT, takes=50.0))
            await asyncio.sleep(40.1)
            assert left(workers[0]) == pytest.approx(200.0, abs=0.2)
            assert workers[1].state == "half_open"
            await workers[1].request(Reason.OVERLOADED, takes=0.3)
            await news()
            for worker in workers:
                assert left(worker) == pytest.approx(60.0, abs=0.2)
            await hung

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("reason", "period", "maximum", "believed"),
    [
        (Reason.RATE_LIMITED, 650.0, 600.0, True),
        (Reason.RATE_LIMITED, 660.0, 600.0, True),
        (Reason.RATE_LIMITED, 661.0, 600.0, False),
        (Reason.QUOTA_EXHAUSTED, 86_400.0, 600.0, True),
        (Reason.QUOTA_EXHAUSTED, 86_401.0, 600.0, False),
        (Reason.QUOTA_EXHAUSTED, 95_000.0, 90_000.0, True),
    ],
)
def test_a_worker_believes_only_periods_that_its_settings_allow(
    reason: Reason, period: float, maximum: float, believed: bool
) -> None:
    """`reset_max` with jitter is allowed, and a day after a fatal failure, whichever is longer."""

    async def scene(sea: FakeRedisCluster) -> None:
        sender, other = Worker(sea, reset_max=period), Worker(sea, reset_max=maximum)
        try:
            await sender.fleet.ready()
            await other.fleet.ready()
            await sender.request(reason, retry_after=period)
            await news()
            if believed:
                assert left(other) == pytest.approx(period, abs=0.2)
            else:
                assert other.gate.allows_calls()
        finally:
            await sender.fleet.aclose()
            await other.fleet.aclose()

    run_with_fake_redis(scene)


@pytest.mark.redis
def test_two_clients_over_redis_agree_on_the_period(server: RedisServer) -> None:
    """The client that sent no probe waits as long as the one whose probe failed."""

    async def scene() -> None:
        one, two = (
            LoopScenario(server.url, breaker_reset_factor=10_000, breaker_reset_max=86_400)
            for _ in range(2)
        )
        async with one.client, two.client:
            await asyncio.gather(one.client.warm_up(), two.client.warm_up())
            await one.outage()
            await until(lambda: {one.state, two.state} == {"open"})
            two.google.fail(Reason.OVERLOADED, status=503, latency=0.1, times=1)
            await until(two.route.breaker.allows_calls)
            with pytest.raises(Exception, match="503"):
                await two.ask()
            await until(lambda: {one.state, two.state} == {"open"})
            first, second = (world.route.breaker.metrics() for world in (one, two))
            assert first.open_for == pytest.approx(second.open_for, abs=100)
            assert first.open_for is not None
            assert first.open_for >= 1000, "ten thousand times at least a tenth of a second"

    run_loop_scenario(scene())
