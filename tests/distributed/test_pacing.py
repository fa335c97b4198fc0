"""The rate limit shared by several processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from itertools import pairwise

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import Worker, messages_delivered, run_with_fake_redis, started_workers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resilient_imagen.ratelimit.limiter import QueueFullError
from resilient_imagen.testing import run_virtual

pytestmark = pytest.mark.no_cover


def now() -> float:
    return asyncio.get_running_loop().time()


async def send(
    worker: Worker, sent: list[tuple[float, int]], index: int, takes: float = 0.0
) -> None:
    with worker.limiter.join() as ticket:
        await ticket.granted
        ticket.consume()
        sent.append((now(), index))
        await asyncio.sleep(takes)


_tasks: set[asyncio.Task[None]] = set()


def start(sending: Coroutine[None, None, None]) -> None:
    """Start a caller in the background."""
    task = asyncio.get_running_loop().create_task(sending)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def test_all_processes_together_keep_the_limit() -> None:
    """Eight workers with 40 callers each send 120 requests a minute together, evenly spaced."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 8, per_minute=120) as workers:
            sent: list[tuple[float, int]] = []
            for index, worker in enumerate(workers):
                for _ in range(40):
                    start(send(worker, sent, index))
            await asyncio.sleep(60)
            assert 118 <= len(sent) <= 121
            gaps = [b - a for (a, _), (b, _) in pairwise(sorted(sent))]
            assert min(gaps) == pytest.approx(0.5, abs=0.01)
            assert max(gaps) == pytest.approx(0.5, abs=0.01)
            await asyncio.sleep(110)
            assert len(sent) == 320

    run_with_fake_redis(scene)


def test_a_process_with_many_callers_does_not_starve_the_others() -> None:
    """One worker has 200 waiting callers and seven have 5 each, served among the first."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 8, per_minute=60) as workers:
            sent: list[tuple[float, int]] = []
            for index, worker in enumerate(workers):
                for _ in range(5 if index else 200):
                    start(send(worker, sent, index))
            await asyncio.sleep(60)
            assert Counter(index for _, index in sent) == {
                0: 60 - 35 + (len(sent) - 60),
                **dict.fromkeys(range(1, 8), 5),
            }
            await asyncio.sleep(200)

    run_with_fake_redis(scene)


def test_callers_of_one_process_are_served_in_order() -> None:
    """The callers of a worker are served first in, first out."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2, per_minute=600) as (worker, _):
            sent: list[tuple[float, int]] = []
            for index in range(12):
                start(send(worker, sent, index, takes=0.3))
                await asyncio.sleep(0.0004)
            await asyncio.sleep(10)
            assert [index for _, index in sent] == list(range(12))

    run_with_fake_redis(scene)


def test_a_burst_is_shared_by_all_processes() -> None:
    """With a burst of four, the whole fleet sends four requests at once, and no fifth."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4, per_minute=60, burst=4) as workers:
            sent: list[tuple[float, int]] = []
            await asyncio.sleep(30)
            began = now()
            for index, worker in enumerate(workers):
                for _ in range(3):
                    start(send(worker, sent, index))
            await asyncio.sleep(0.1)
            assert len(sent) == 4
            await asyncio.sleep(20)
            assert len(sent) == 12
            assert sorted(sent)[4][0] - began == pytest.approx(1, abs=0.05)

    run_with_fake_redis(scene)


def test_callers_that_leave_return_their_places() -> None:
    """Callers of eight workers leave the queue: the next caller is served at once."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 8, per_minute=10) as workers:
            tickets = [worker.limiter.join() for worker in workers for _ in range(4)]
            await messages_delivered()
            for ticket in tickets[1:]:
                with ticket:
                    pass
            with tickets[0] as first:
                first.consume()
            await asyncio.sleep(7)
            assert workers[3].limiter.shortest_wait() == pytest.approx(0, abs=0.01)
            sent: list[tuple[float, int]] = []
            began = now()
            await send(workers[3], sent, 3)
            assert sent[0][0] - began < 0.1

    run_with_fake_redis(scene)


def test_the_estimate_of_a_wait_includes_the_turns_of_other_processes() -> None:
    """With three waiting processes, a caller of a fourth one waits for one turn of each."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4, per_minute=60) as workers:
            tickets = [worker.limiter.join() for worker in workers[:3] for _ in range(4)]
            await asyncio.sleep(1.5)
            newcomer = workers[3].limiter
            assert newcomer.shortest_wait() == pytest.approx(3.5, abs=1.1)
            began = now()
            await send(workers[3], [], 3)
            assert now() - began == pytest.approx(3.5, abs=1.1)
            for ticket in tickets:
                with ticket:
                    pass

    run_with_fake_redis(scene)


def test_concurrent_callers_share_one_round_trip() -> None:
    """A request costs one round trip, also for several callers.

    Estimates and snapshots cost none.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 1, per_minute=6000) as (worker,):
            await messages_delivered()
            steps, trips = redis.store.steps, redis.trips
            sent: list[tuple[float, int]] = []
            for _ in range(5):
                worker.limiter.shortest_wait()
                worker.limiter.snapshot()
            await send(worker, sent, 0)
            assert (redis.store.steps, redis.trips) == (steps + 1, trips + 1)
            await asyncio.gather(*(send(worker, sent, 0) for _ in range(4)))
            assert (redis.store.steps, redis.trips) == (steps + 2, trips + 2)

    run_with_fake_redis(scene)


def test_a_redis_that_does_not_answer_delays_the_queue_once() -> None:
    """After half a second without an answer the callers are served by the local limit."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 1, per_minute=600) as (worker,):
            redis.up = False  # reconnects fail
            worker.connection.stuck = True
            sent: list[tuple[float, int]] = []
            began = now()
            await asyncio.gather(*(send(worker, sent, index) for index in range(10)))
            assert [index for _, index in sent] == list(range(10))
            assert sent[0][0] - began < 0.6
            assert sent[-1][0] - began < 0.6 + 1.0

    run_with_fake_redis(scene)


def test_the_limit_is_shared_again_after_the_reconnect() -> None:
    """After an outage of Redis all workers together keep the limit."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4, per_minute=60) as workers:
            redis.stop()
            await asyncio.sleep(5)
            redis.restart(empty=True)
            await asyncio.sleep(5)
            sent: list[tuple[float, int]] = []
            for index, worker in enumerate(workers):
                for _ in range(10):
                    start(send(worker, sent, index))
            await asyncio.sleep(20)
            assert 19 <= len(sent) <= 22
            await asyncio.sleep(30)

    run_with_fake_redis(scene)


def test_max_queue_counts_waiting_callers_only() -> None:
    """With `max_queue` = 0 a caller that can be served at once is accepted, and the next one is
    rejected.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 1, per_minute=60) as (worker,):
            worker.limiter._max_queue = 0
            with worker.limiter.join() as ticket:
                await ticket.granted
                ticket.consume()
                with pytest.raises(QueueFullError):
                    worker.limiter.join()

    run_with_fake_redis(scene)


def test_a_new_loop_starts_with_an_empty_queue() -> None:
    """A limiter that outlives its loop drops the waiting callers and slots of that loop."""
    kept: list[Worker] = []

    async def first() -> None:
        redis = FakeRedisCluster()
        worker = Worker(redis, per_minute=60)
        kept.append(worker)
        await worker.coordinator.ready()
        for _ in range(3):
            start(send(worker, [], 0))
        await asyncio.sleep(0)  # all callers are cancelled with the loop

    async def second() -> None:
        (worker,) = kept
        sent: list[tuple[float, int]] = []
        await send(worker, sent, 0)
        assert worker.limiter.in_flight == 0

    run_virtual(first())
    run_virtual(second())


@settings(max_examples=60, deadline=None)
@example(  # once, a place that was due without waiting callers made the loop spin
    callers=[(0, 8.0, None, 3.0), (0, 2.5, 2.0, 0.0), (2, 7.4, 2.0, 2.9)], burst=1, cuts=[8.3, 5.3]
)
@given(
    callers=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.floats(0, 8),
            st.sampled_from([None, None, 0.0, 0.7, 2.0]),
            st.floats(0, 3),
        ),
        min_size=1,
        max_size=25,
    ),
    burst=st.sampled_from([1, 3]),
    cuts=st.lists(st.floats(0, 10), max_size=2),
)
def test_any_arrivals_and_departures_keep_the_limit(
    callers: list[tuple[int, float, float | None, float]], burst: int, cuts: list[float]
) -> None:
    """Callers arrive, leave and take any time: the limit is kept, and all that stay are served.

    Broken connections change neither: a worker keeps the places that it holds, and requests the
    others again.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3, per_minute=60, burst=burst, slots=2) as workers:
            sent: list[tuple[float, int]] = []

            async def caller(index: int, comes: float, leaves: float | None, takes: float) -> None:
                await asyncio.sleep(comes)
                try:
                    async with asyncio.timeout(leaves):
                        await send(workers[index], sent, index, takes)
                except TimeoutError:
                    return

            async def cut(when: float) -> None:
                await asyncio.sleep(when)
                workers[0].connection.break_off()

            async with asyncio.timeout(1000):  # exceeded if a caller is never served
                await asyncio.gather(
                    *(caller(*each) for each in callers), *(cut(when) for when in cuts)
                )
            staying = sum(leaves is None for _, _, leaves, _ in callers)
            assert len(sent) >= staying
            times = sorted(when for when, _ in sent)
            if not cuts:
                for early, late in zip(times, times[burst:], strict=False):
                    assert late - early >= 1.0 - 0.01
            assert all(worker.limiter.in_flight == 0 for worker in workers)
            await messages_delivered()
            assert all(worker.limiter._held == [] for worker in workers)
            assert not any(worker.limiter._asking for worker in workers)

    run_with_fake_redis(scene)
