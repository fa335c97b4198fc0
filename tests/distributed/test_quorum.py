"""Trip rules over all workers, and the quorum."""

from __future__ import annotations

import asyncio

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import messages_delivered, run_with_fake_redis, started_workers, states
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_imagen.circuitbreaker import Rejection
from resilient_imagen.reasons import Reason

pytestmark = pytest.mark.no_cover

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
def test_consecutive_failures_of_several_workers_open_for_all(reason: Reason) -> None:
    """One failure on each of three workers is three in a row and opens the breaker of all."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 8) as workers:
            for worker in workers[:3]:
                assert states(workers) == {"closed"}
                await worker.fail(reason=reason)
            await messages_delivered()
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_a_success_of_any_worker_resets_consecutive_failures() -> None:
    """Two failures, another worker's success and two failures open no circuit."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4, min_calls=1000) as workers:
            for _ in range(2):
                await workers[0].fail()
                await workers[1].fail()
                await workers[2].request()
            await messages_delivered()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@pytest.mark.parametrize("reason", OWN_TROUBLE)
def test_possibly_local_failures_open_only_the_workers_own_breaker(reason: Reason) -> None:
    """Failures that may be local to one worker never open the breaker of another one."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            failing, *healthy = workers
            for pause in (61, 61, 61):
                await failing.fail(3, reason)
                assert failing.state == "open"
                assert states(healthy) == {"closed"}
                for worker in healthy:
                    assert not isinstance(await worker.request(), Rejection)
                await asyncio.sleep(pause)

    run_with_fake_redis(scene)


def test_a_second_worker_confirms_connection_failures() -> None:
    """Connection failures of one worker open for all once another one fails, too."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            for worker in workers:
                await worker.request()
            await workers[0].fail(3, Reason.CONNECTION)
            await messages_delivered()
            assert states(workers[1:]) == {"closed"}
            await workers[1].fail(1, Reason.CONNECTION)
            await messages_delivered()
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_rejected_keys_of_two_workers_open_for_all() -> None:
    """A rejected key may be local to one worker.

    The second worker's rejection opens for all, for the maximum time.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            for worker in workers:
                await worker.request()
            await workers[0].fail(1, Reason.UNAUTHENTICATED)
            await messages_delivered()
            assert states(workers[1:]) == {"closed"}
            await workers[1].fail(1, Reason.UNAUTHENTICATED)
            await messages_delivered()
            assert states(workers) == {"open"}
            assert workers[3].breaker.metrics().retry_after == pytest.approx(600, abs=1)

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    "others", ["fresh", "on their first image", pytest.param("idle for long", marks=pytest.mark.ci)]
)
@pytest.mark.parametrize("reason", [Reason.CONNECTION, Reason.UNAUTHENTICATED])
def test_workers_without_outcomes_count_for_the_quorum(others: str, reason: Reason) -> None:
    """One failing worker of eight opens its own circuit only, also if the others are idle."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 8) as workers:
            failing, *healthy = workers
            takes = 10.0 if others == "on their first image" else 0.0
            images = [asyncio.ensure_future(worker.request(takes=takes)) for worker in healthy]
            await asyncio.sleep({"idle for long": 301.0}.get(others, 0.0))
            await failing.fail(3, reason)
            await messages_delivered()
            assert (failing.state, states(healthy)) == ("open", {"closed"})
            await asyncio.gather(*images)

    run_with_fake_redis(scene)


@pytest.mark.parametrize("reason", [Reason.CONNECTION, Reason.TIMEOUT])
def test_the_first_failure_of_another_worker_confirms_an_outage(reason: Reason) -> None:
    """In an outage with one busy worker, only that worker's breaker opens, round after round.

    The first failure of another worker opens the breaker for all.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            busy, *idle = workers
            await busy.fail(3, reason)
            for _ in range(3):
                await messages_delivered()
                assert (busy.state, states(idle)) == ("open", {"closed"})
                assert busy.breaker.metrics().retry_after == pytest.approx(60, abs=1)
                await asyncio.sleep(60)
                await busy.fail(1, reason)
            await idle[0].fail(1, reason)
            await messages_delivered()
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_one_probe_with_a_connection_failure_does_not_reopen_after_a_long_period() -> None:
    """After ten minutes without an outcome, one probe cannot connect, and the next one still
    decides.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            await workers[0].fail(1, Reason.QUOTA_EXHAUSTED)
            await asyncio.sleep(601)
            await workers[3].fail(1, Reason.CONNECTION)
            await messages_delivered()
            assert workers[3].state == "open"
            await workers[1].request()
            await messages_delivered()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_a_single_worker_needs_no_confirmation() -> None:
    """Without other workers the failures of one open the shared breaker, and a new worker adopts
    it.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 1) as (worker,):
            await worker.fail(3, Reason.CONNECTION)
            async with started_workers(redis, 1) as (newcomer,):
                assert newcomer.state == "open"

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("killed", "after", "alone"), [(False, 0, True), (True, 0, False), (True, 61, True)]
)
def test_workers_that_left_do_not_count_for_the_quorum(
    killed: bool, after: float, alone: bool
) -> None:
    """A worker that unregistered does not count any more.

    A killed one counts for another minute.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as (worker, other):
            if killed:
                other.connection.break_off()
            await other.coordinator.aclose()
            await asyncio.sleep(after)
            await worker.fail(3, Reason.CONNECTION)
            await messages_delivered()
            assert worker.state == "open"
            shared = worker.breaker.snapshot()["fleet"]["state"]
            assert shared == ("open" if alone else "closed")

    run_with_fake_redis(scene)


def test_an_exhausted_quota_opens_for_all_at_once() -> None:
    """The quota belongs to the account, and one worker's failure is sufficient."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            for worker in workers:
                await worker.request()
            await workers[0].fail(1, Reason.QUOTA_EXHAUSTED)
            await messages_delivered()
            assert states(workers) == {"open"}
            assert workers[2].breaker.metrics().retry_after == pytest.approx(600, abs=1)

    run_with_fake_redis(scene)


def test_a_hint_opens_for_all_for_its_exact_duration() -> None:
    """After a 429 with a hint of 33 seconds, no worker sends a request for 33 seconds."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            await workers[0].request(Reason.RATE_LIMITED, retry_after=33.0)
            await messages_delivered()
            assert states(workers) == {"open"}
            assert workers[2].breaker.metrics().retry_after == pytest.approx(33, abs=0.1)

    run_with_fake_redis(scene)


def test_the_failure_rate_of_all_workers_opens_for_all() -> None:
    """Every other request fails on each of four workers, never three in a row: the failure rate
    opens the breaker.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4, fail_max=50, min_calls=8) as workers:
            for worker in workers:
                await worker.request()
                await worker.fail()
            await messages_delivered()
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_the_failure_rate_of_one_worker_does_not_open_for_all() -> None:
    """Seven tenths of all calls failed, but all on one worker, whose calls are left out of the
    rate.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4, fail_max=5, min_calls=6) as workers:
            failing, *healthy = workers
            for worker in healthy:
                await worker.request()
            await failing.fail(4, Reason.CONNECTION)
            await healthy[0].request()
            await failing.fail(4, Reason.CONNECTION)
            await messages_delivered()
            assert states(healthy) == {"closed"}

    run_with_fake_redis(scene)


def test_outcomes_of_an_earlier_state_do_not_count() -> None:
    """Requests sent before the open period fail during and after it, and change nothing."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            in_flight = [
                asyncio.ensure_future(workers[2].request(Reason.OVERLOADED, takes=t))
                for t in (10, 65, 66, 67)
            ]
            await messages_delivered()
            await workers[0].fail(3)
            await messages_delivered()
            until = [worker.breaker.blocked_until() for worker in workers]
            await asyncio.sleep(12)
            assert [worker.breaker.blocked_until() for worker in workers] == until
            await asyncio.sleep(48.5)
            await workers[1].request()
            await messages_delivered()
            assert states(workers) == {"closed"}
            await asyncio.gather(*in_flight)
            await messages_delivered()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@settings(max_examples=40, deadline=None)
@given(
    history=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, *ANSWERS, *OWN_TROUBLE])), max_size=30
    )
)
def test_the_quorum_under_any_history(history: list[tuple[int, Reason | None]]) -> None:
    """The fleet opens on consecutive failures with a quorum, and a worker on its own ones.

    An oracle of the rule of consecutive failures runs beside; the failure rate is set so high that
    it never applies.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4, fail_max=3, min_calls=1000) as workers:
            row: list[tuple[int, Reason]] = []
            own: list[int] = [0] * 4
            for who, reason in history:
                if own[who] >= 3:
                    assert isinstance(await workers[who].request(reason), Rejection)
                    continue
                await workers[who].request(reason)
                await messages_delivered()
                row = [*row, (who, reason)] if reason else []
                own[who] = own[who] + _weight(reason) if reason else 0
                answered = any(each in ANSWERS for _, each in row)
                quorum = answered or len({each for each, _ in row}) > 1
                opened = sum(_weight(each) for _, each in row) >= 3 and quorum
                shared = {worker.breaker.snapshot()["fleet"]["state"] for worker in workers}
                assert shared == {"open" if opened else "closed"}
                for worker, failures in zip(workers, own, strict=True):
                    assert worker.state == ("open" if opened or failures >= 3 else "closed")
                if opened:
                    return

    run_with_fake_redis(scene)


def _weight(reason: Reason) -> int:
    at_once = {Reason.UNAUTHENTICATED, Reason.FORBIDDEN, Reason.MODEL_NOT_FOUND}
    return 3 if reason in at_once else 1
