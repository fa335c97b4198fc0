"""Images per minute over all processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from itertools import pairwise

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import Worker, news, run_with_fake_redis, started_workers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resilient_imagen.ratelimit.limiter import QueueFullError
from resilient_imagen.testing import run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


async def send(worker: Worker, sent: list[tuple[float, int]], who: int, takes: float = 0.0) -> None:
    with worker.pacer.join() as ticket:
        await ticket.granted
        ticket.consume()
        sent.append((now(), who))
        await asyncio.sleep(takes)


_tasks: set[asyncio.Task[None]] = set()


def begin(sending: Coroutine[None, None, None]) -> None:
    """Let a caller go its way."""
    task = asyncio.get_running_loop().create_task(sending)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def test_the_pace_is_one_for_all_processes() -> None:
    """Eight workers with 40 callers each: 120 a minute in all, evenly spaced."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 8, per_minute=120) as workers:
            sent: list[tuple[float, int]] = []
            for who, worker in enumerate(workers):
                for _ in range(40):
                    begin(send(worker, sent, who))
            await asyncio.sleep(60)
            assert 118 <= len(sent) <= 121
            gaps = [b - a for (a, _), (b, _) in pairwise(sorted(sent))]
            assert min(gaps) == pytest.approx(0.5, abs=0.01)
            assert max(gaps) == pytest.approx(0.5, abs=0.01)
            await asyncio.sleep(110)
            assert len(sent) == 320

    run_with_fake_redis(scene)


def test_no_process_crowds_out_the_others() -> None:
    """One has 200 callers waiting and seven have 5 each: these are served among the first."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 8, per_minute=60) as workers:
            sent: list[tuple[float, int]] = []
            for who, worker in enumerate(workers):
                for _ in range(5 if who else 200):
                    begin(send(worker, sent, who))
            await asyncio.sleep(60)
            assert Counter(who for _, who in sent) == {
                0: 60 - 35 + (len(sent) - 60),
                **dict.fromkeys(range(1, 8), 5),
            }
            await asyncio.sleep(200)

    run_with_fake_redis(scene)


def test_callers_of_one_process_are_served_in_order() -> None:
    """First in, first out, however the round trips fall."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2, per_minute=600) as (worker, _):
            sent: list[tuple[float, int]] = []
            for who in range(12):
                begin(send(worker, sent, who, takes=0.3))
                await asyncio.sleep(0.0004)
            await asyncio.sleep(10)
            assert [who for _, who in sent] == list(range(12))

    run_with_fake_redis(scene)


def test_a_burst_is_shared_too() -> None:
    """With a burst of four, four requests of the whole fleet go at once, and no fifth."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4, per_minute=60, burst=4) as workers:
            sent: list[tuple[float, int]] = []
            await asyncio.sleep(30)
            began = now()
            for who, worker in enumerate(workers):
                for _ in range(3):
                    begin(send(worker, sent, who))
            await asyncio.sleep(0.1)
            assert len(sent) == 4
            await asyncio.sleep(20)
            assert len(sent) == 12
            assert sorted(sent)[4][0] - began == pytest.approx(1, abs=0.05)

    run_with_fake_redis(scene)


def test_those_who_leave_give_their_places_back() -> None:
    """Eight workers stand for a minute each and all leave: the next caller goes at once."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 8, per_minute=10) as workers:
            tickets = [worker.pacer.join() for worker in workers for _ in range(4)]
            await news()
            for ticket in tickets[1:]:
                with ticket:
                    pass
            with tickets[0] as first:
                first.consume()
            await asyncio.sleep(7)
            assert workers[3].pacer.shortest_wait() == pytest.approx(0, abs=0.01)
            sent: list[tuple[float, int]] = []
            began = now()
            await send(workers[3], sent, 3)
            assert sent[0][0] - began < 0.1

    run_with_fake_redis(scene)


def test_the_estimate_of_a_wait_includes_the_turns_of_other_processes() -> None:
    """With three waiting processes, a caller of a fourth one waits for one turn of each."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4, per_minute=60) as workers:
            tickets = [worker.pacer.join() for worker in workers[:3] for _ in range(4)]
            await asyncio.sleep(1.5)
            newcomer = workers[3].pacer
            assert newcomer.shortest_wait() == pytest.approx(3.5, abs=1.1)
            began = now()
            await send(workers[3], [], 3)
            assert now() - began == pytest.approx(3.5, abs=1.1)
            for ticket in tickets:
                with ticket:
                    pass

    run_with_fake_redis(scene)


def test_a_request_costs_one_round_trip_and_callers_that_come_together_share_it() -> None:
    """Estimates and snapshots cost none."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 1, per_minute=6000) as (worker,):
            await news()
            steps, trips = sea.store.steps, sea.trips
            sent: list[tuple[float, int]] = []
            for _ in range(5):
                worker.pacer.shortest_wait()
                worker.pacer.snapshot()
            await send(worker, sent, 0)
            assert (sea.store.steps, sea.trips) == (steps + 1, trips + 1)
            await asyncio.gather(*(send(worker, sent, 0) for _ in range(4)))
            assert (sea.store.steps, sea.trips) == (steps + 2, trips + 2)

    run_with_fake_redis(scene)


def test_a_silent_redis_costs_half_a_second_once() -> None:
    """The place that was asked for never comes; the caller goes on by the local pace."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 1, per_minute=600) as (worker,):
            sea.up = False  # nobody can come back
            worker.link.stuck = True
            sent: list[tuple[float, int]] = []
            began = now()
            await asyncio.gather(*(send(worker, sent, who) for who in range(10)))
            assert [who for _, who in sent] == list(range(10))
            assert sent[0][0] - began < 0.6
            assert sent[-1][0] - began < 0.6 + 1.0

    run_with_fake_redis(scene)


def test_the_pace_is_shared_again_when_redis_is_back() -> None:
    """After an outage of Redis the workers queue together as before."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4, per_minute=60) as workers:
            sea.stop()
            await asyncio.sleep(5)
            sea.restart(empty=True)
            await asyncio.sleep(5)
            sent: list[tuple[float, int]] = []
            for who, worker in enumerate(workers):
                for _ in range(10):
                    begin(send(worker, sent, who))
            await asyncio.sleep(20)
            assert 19 <= len(sent) <= 22
            await asyncio.sleep(30)

    run_with_fake_redis(scene)


def test_max_queue_counts_who_waits_and_nobody_else() -> None:
    """With no waiting allowed, who can go at once is let in, and the next one is not."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 1, per_minute=60) as (worker,):
            worker.pacer._max_queue = 0
            with worker.pacer.join() as ticket:
                await ticket.granted
                ticket.consume()
                with pytest.raises(QueueFullError):
                    worker.pacer.join()

    run_with_fake_redis(scene)


def test_another_loop_begins_anew() -> None:
    """A limiter outlives its loop: what was asked for and held there is forgotten."""
    kept: list[Worker] = []

    async def first() -> None:
        sea = FakeRedisCluster()
        worker = Worker(sea, per_minute=60)
        kept.append(worker)
        await worker.fleet.ready()
        for _ in range(3):
            begin(send(worker, [], 0))
        await asyncio.sleep(0)  # cancelled, all of them, with the loop

    async def second() -> None:
        (worker,) = kept
        sent: list[tuple[float, int]] = []
        await send(worker, sent, 0)
        assert worker.pacer.in_flight == 0

    run_virtual(first())
    run_virtual(second())


@settings(max_examples=60, deadline=None)
@example(  # a place was held, and due, while Redis was away and nobody waited: the loop span
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
def test_the_pace_under_any_callers(
    callers: list[tuple[int, float, float | None, float]], burst: int, cuts: list[float]
) -> None:
    """Whoever comes when, leaves when and takes how long: never faster than the pace; all served.

    Cut connections change neither: what a worker holds stays good, and the rest is asked for anew.
    """

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3, per_minute=60, burst=burst, slots=2) as workers:
            sent: list[tuple[float, int]] = []

            async def caller(who: int, comes: float, leaves: float | None, takes: float) -> None:
                await asyncio.sleep(comes)
                try:
                    async with asyncio.timeout(leaves):
                        await send(workers[who], sent, who, takes)
                except TimeoutError:
                    return

            async def cut(when: float) -> None:
                await asyncio.sleep(when)
                workers[0].link.break_off()

            async with asyncio.timeout(1000):  # of virtual time: a caller that nobody serves fails
                await asyncio.gather(
                    *(caller(*each) for each in callers), *(cut(when) for when in cuts)
                )
            staying = sum(leaves is None for _, _, leaves, _ in callers)
            assert len(sent) >= staying
            times = sorted(when for when, _ in sent)
            if not cuts:
                for early, late in zip(times, times[burst:], strict=False):
                    assert late - early >= 1.0 - 0.01
            assert all(worker.pacer.in_flight == 0 for worker in workers)
            await news()
            assert all(worker.pacer._held == [] for worker in workers)
            assert not any(worker.pacer._asking for worker in workers)

    run_with_fake_redis(scene)
