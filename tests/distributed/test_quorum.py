"""Who opens for whom: failures counted over all workers, and the quorum."""

from __future__ import annotations

import asyncio

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import news, run_with_fake_redis, started_workers, states
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_imagen.circuitbreaker import Rejection
from resilient_imagen.reasons import Reason

OWN_TROUBLE = [
    Reason.CONNECTION,
    Reason.TIMEOUT,
    Reason.INVALID_RESPONSE,
    Reason.UNAUTHENTICATED,
    Reason.FORBIDDEN,
    Reason.MODEL_NOT_FOUND,
]
ANSWERS = [Reason.OVERLOADED, Reason.SERVER_ERROR]


@pytest.mark.parametrize("reason", [*ANSWERS, Reason.CONNECTION, Reason.TIMEOUT])
def test_a_failure_that_any_worker_sees_helps_to_open(reason: Reason) -> None:
    """Three workers with one failure each make the three in a row that open for all eight."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 8) as workers:
            for worker in workers[:3]:
                assert states(workers) == {"closed"}
                await worker.fail(reason=reason)
            await news()
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_a_success_of_any_worker_ends_the_row() -> None:
    """Two failures, another worker's success and two failures open no circuit."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4, min_calls=1000) as workers:
            for _ in range(2):
                await workers[0].fail()
                await workers[1].fail()
                await workers[2].request()
            await news()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@pytest.mark.parametrize("reason", OWN_TROUBLE)
def test_one_sick_worker_opens_for_itself_alone(reason: Reason) -> None:
    """What may be its own network or key opens its own breaker, again and again, and no other."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4) as workers:
            sick, *healthy = workers
            for pause in (61, 61, 61):
                await sick.fail(3, reason)
                assert sick.state == "open"
                assert states(healthy) == {"closed"}
                for worker in healthy:
                    assert not isinstance(await worker.request(), Rejection)
                await asyncio.sleep(pause)

    run_with_fake_redis(scene)


def test_a_second_worker_confirms_what_the_first_one_saw() -> None:
    """Connection failures of one worker open for all once another one fails, too."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4) as workers:
            for worker in workers:
                await worker.request()
            await workers[0].fail(3, Reason.CONNECTION)
            await news()
            assert states(workers[1:]) == {"closed"}
            await workers[1].fail(1, Reason.CONNECTION)
            await news()
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_two_refused_keys_open_for_all_but_one_does_not() -> None:
    """A wrong key may be one worker's; two workers' refusals open at once, for the longest time."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4) as workers:
            for worker in workers:
                await worker.request()
            await workers[0].fail(1, Reason.UNAUTHENTICATED)
            await news()
            assert states(workers[1:]) == {"closed"}
            await workers[1].fail(1, Reason.UNAUTHENTICATED)
            await news()
            assert states(workers) == {"open"}
            assert workers[3].gate.metrics().retry_after == pytest.approx(600, abs=1)

    run_with_fake_redis(scene)


@pytest.mark.parametrize("others", ["fresh", "on their first image", "idle for long"])
@pytest.mark.parametrize("reason", [Reason.CONNECTION, Reason.UNAUTHENTICATED])
def test_workers_that_have_seen_nothing_count_all_the_same(others: str, reason: Reason) -> None:
    """One failing worker of eight opens its own circuit only, also if the others are idle."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 8) as workers:
            sick, *healthy = workers
            takes = 10.0 if others == "on their first image" else 0.0
            images = [asyncio.ensure_future(worker.request(takes=takes)) for worker in healthy]
            await asyncio.sleep({"idle for long": 301.0}.get(others, 0.0))
            await sick.fail(3, reason)
            await news()
            assert (sick.state, states(healthy)) == ("open", {"closed"})
            await asyncio.gather(*images)

    run_with_fake_redis(scene)


@pytest.mark.parametrize("reason", [Reason.CONNECTION, Reason.TIMEOUT])
def test_what_only_one_busy_worker_sees_is_confirmed_by_the_next_to_ask(reason: Reason) -> None:
    """In an outage with one busy worker, only that worker's breaker opens, round after round.

    The first failure of another worker opens the breaker for all.
    """

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4) as workers:
            busy, *idle = workers
            await busy.fail(3, reason)
            for _ in range(3):
                await news()
                assert (busy.state, states(idle)) == ("open", {"closed"})
                assert busy.gate.metrics().retry_after == pytest.approx(60, abs=1)
                await asyncio.sleep(60)
                await busy.fail(1, reason)
            await idle[0].fail(1, reason)
            await news()
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_a_round_of_probes_is_not_ended_by_one_sick_worker_after_a_long_opening() -> None:
    """Ten minutes without an outcome: its probe cannot connect, and the next one still decides."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4) as workers:
            await workers[0].fail(1, Reason.QUOTA_EXHAUSTED)
            await asyncio.sleep(601)
            await workers[3].fail(1, Reason.CONNECTION)
            await news()
            assert workers[3].state == "open"
            await workers[1].request()
            await news()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_a_worker_alone_decides_alone() -> None:
    """Where there is no other one, one witness is all; a newcomer then finds it open."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 1) as (worker,):
            await worker.fail(3, Reason.CONNECTION)
            async with started_workers(sea, 1) as (newcomer,):
                assert newcomer.state == "open"

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("killed", "after", "alone"), [(False, 0, True), (True, 0, False), (True, 61, True)]
)
def test_a_worker_whose_others_have_gone_is_alone(killed: bool, after: float, alone: bool) -> None:
    """Who says goodbye is gone at once; who was killed counts for another minute."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as (worker, other):
            if killed:
                other.link.break_off()
            await other.fleet.aclose()
            await asyncio.sleep(after)
            await worker.fail(3, Reason.CONNECTION)
            await news()
            assert worker.state == "open"
            shared = worker.gate.snapshot()["fleet"]["state"]
            assert shared == ("open" if alone else "closed")

    run_with_fake_redis(scene)


def test_a_used_up_quota_opens_for_all_at_once() -> None:
    """It belongs to the account, and one worker's answer is enough."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3) as workers:
            for worker in workers:
                await worker.request()
            await workers[0].fail(1, Reason.QUOTA_EXHAUSTED)
            await news()
            assert states(workers) == {"open"}
            assert workers[2].gate.metrics().retry_after == pytest.approx(600, abs=1)

    run_with_fake_redis(scene)


def test_a_hint_opens_for_all_exactly_that_long() -> None:
    """A 429 that says 33 seconds keeps every worker away for 33 seconds."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3) as workers:
            await workers[0].request(Reason.RATE_LIMITED, retry_after=33.0)
            await news()
            assert states(workers) == {"open"}
            assert workers[2].gate.metrics().retry_after == pytest.approx(33, abs=0.1)

    run_with_fake_redis(scene)


def test_the_share_of_all_workers_calls_opens_for_all() -> None:
    """Every other request fails on each of four workers, never three in a row: the rate opens."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4, fail_max=50, min_calls=8) as workers:
            for worker in workers:
                await worker.request()
                await worker.fail()
            await news()
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_the_share_of_one_worker_does_not() -> None:
    """Seven tenths of all calls failed, but all of them on one worker: it is left out."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4, fail_max=5, min_calls=6) as workers:
            sick, *healthy = workers
            for worker in healthy:
                await worker.request()
            await sick.fail(4, Reason.CONNECTION)
            await healthy[0].request()
            await sick.fail(4, Reason.CONNECTION)
            await news()
            assert states(healthy) == {"closed"}

    run_with_fake_redis(scene)


def test_what_was_seen_in_an_earlier_state_does_not_count() -> None:
    """Requests sent before the opening fail while it lasts, and after it: they change nothing."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3) as workers:
            overhanging = [
                asyncio.ensure_future(workers[2].request(Reason.OVERLOADED, takes=t))
                for t in (10, 65, 66, 67)
            ]
            await news()
            await workers[0].fail(3)
            await news()
            until = [worker.gate.blocked_until() for worker in workers]
            await asyncio.sleep(12)
            assert [worker.gate.blocked_until() for worker in workers] == until
            await asyncio.sleep(48.5)
            await workers[1].request()
            await news()
            assert states(workers) == {"closed"}
            await asyncio.gather(*overhanging)
            await news()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@settings(max_examples=40, deadline=None)
@given(
    history=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, *ANSWERS, *OWN_TROUBLE])), max_size=30
    )
)
def test_the_quorum_under_any_history(history: list[tuple[int, Reason | None]]) -> None:
    """The fleet opens on a row of failures that has a quorum, and a worker on its own row.

    An oracle of the rule "in a row" runs beside; the share is set out of the way.
    """

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4, fail_max=3, min_calls=1000) as workers:
            row: list[tuple[int, Reason]] = []
            own: list[int] = [0] * 4
            for who, reason in history:
                if own[who] >= 3:
                    assert isinstance(await workers[who].request(reason), Rejection)
                    continue
                await workers[who].request(reason)
                await news()
                row = [*row, (who, reason)] if reason else []
                own[who] = own[who] + _weight(reason) if reason else 0
                answered = any(each in ANSWERS for _, each in row)
                quorum = answered or len({each for each, _ in row}) > 1
                opened = sum(_weight(each) for _, each in row) >= 3 and quorum
                shared = {worker.gate.snapshot()["fleet"]["state"] for worker in workers}
                assert shared == {"open" if opened else "closed"}
                for worker, failures in zip(workers, own, strict=True):
                    assert worker.state == ("open" if opened or failures >= 3 else "closed")
                if opened:
                    return

    run_with_fake_redis(scene)


def _weight(reason: Reason) -> int:
    at_once = {Reason.UNAUTHENTICATED, Reason.FORBIDDEN, Reason.MODEL_NOT_FOUND}
    return 3 if reason in at_once else 1
