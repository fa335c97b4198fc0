"""Rate limiter: concurrency, images per minute, order, and callers that leave."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_imagen.ratelimit.limiter import QueueFullError, RateLimiter
from resilient_imagen.testing import VirtualTimeLoop, run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


async def paced(
    limiter: RateLimiter, work: Callable[[], Awaitable[None]], sent: list[float]
) -> None:
    with limiter.join() as ticket:
        await ticket.granted
        ticket.consume()
        sent.append(now())
        await work()


def times_of(limiter: RateLimiter, callers: int, busy: float) -> list[float]:
    sent: list[float] = []

    async def work() -> None:
        await asyncio.sleep(busy)

    async def main() -> None:
        await asyncio.gather(*(paced(limiter, work, sent) for _ in range(callers)))

    run_virtual(main())
    return sent


def test_requests_are_evenly_spaced() -> None:
    """Ten images a minute start six seconds apart, the first at once."""
    sent = times_of(RateLimiter(max_concurrent=4, per_minute=10), 8, busy=1)

    assert [pytest.approx(6.0 * n, abs=1e-3) for n in range(8)] == sent


def test_a_burst_starts_together_after_an_idle_time() -> None:
    """burst=3 starts three at once; the fourth keeps the pace."""
    sent = times_of(RateLimiter(max_concurrent=9, per_minute=10, burst=3), 5, busy=1)

    assert [pytest.approx(t, abs=1e-3) for t in (0, 0, 0, 6, 12)] == sent


def test_no_more_than_allowed_are_in_flight() -> None:
    """A third caller waits for a slot although the pace allows it."""
    sent = times_of(RateLimiter(max_concurrent=2, per_minute=6000), 4, busy=50)

    assert [pytest.approx(t, abs=0.1) for t in (0, 0, 50, 50)] == sent


def test_first_come_first_served() -> None:
    """Callers are served in the order in which they joined."""
    order: list[int] = []
    limiter = RateLimiter(max_concurrent=1, per_minute=600)

    async def caller(number: int) -> None:
        with limiter.join() as ticket:
            await ticket.granted
            ticket.consume()
            order.append(number)
            await asyncio.sleep(1)

    async def main() -> None:
        await asyncio.gather(*(caller(n) for n in range(20)))

    run_virtual(main())
    assert list(range(20)) == order


def test_the_queue_is_bounded_when_asked() -> None:
    """With max_queue=1 a second waiting caller is rejected, and the first one keeps its place."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=1, per_minute=600, max_queue=1)
        with limiter.join() as first:
            await first.granted
            with limiter.join():
                with pytest.raises(QueueFullError):
                    limiter.join()
                assert limiter.snapshot()["waiting"] == 1

    run_virtual(main())


def test_max_queue_zero_serves_callers_that_need_not_wait() -> None:
    """Without a queue, a caller is admitted if a slot is free."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=1, per_minute=600, max_queue=0)
        with limiter.join() as ticket:
            assert ticket.granted.done()
            with pytest.raises(QueueFullError):
                limiter.join()

    run_virtual(main())


def test_an_unused_place_is_returned() -> None:
    """A caller that leaves after its grant, without a request, does not delay the next one."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=1, per_minute=10)
        with limiter.join() as ticket:
            await ticket.granted
        with limiter.join() as ticket:
            await ticket.granted
            assert now() == pytest.approx(0.0, abs=1e-3)

    run_virtual(main())


def test_a_place_is_not_given_back_past_a_later_one() -> None:
    """A place returned late does not let two requests start together."""
    sent: list[float] = []

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=4, per_minute=10)
        with limiter.join() as early:
            await early.granted
            await paced(limiter, lambda: asyncio.sleep(0), sent)
        await paced(limiter, lambda: asyncio.sleep(0), sent)

    run_virtual(main())
    assert sent[1] - sent[0] == pytest.approx(6.0, abs=1e-3)


def test_a_cancelled_caller_that_was_just_granted_leaves_nothing_behind() -> None:
    """A caller that is granted and cancelled at the same moment frees slot and place."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=1, per_minute=600)

        async def waiting() -> None:
            with limiter.join() as ticket:
                await ticket.granted

        with limiter.join() as first:
            await first.granted
            first.consume()
            second = asyncio.create_task(waiting())
            await asyncio.sleep(1)
        assert limiter.in_flight == 1  # granted to the second, which has not run yet
        second.cancel()
        await asyncio.wait({second})
        assert second.cancelled()
        assert limiter.in_flight == 0
        assert limiter.shortest_wait() == 0

    run_virtual(main())


def test_callers_of_a_closed_loop_do_not_block_the_next_loop() -> None:
    """The slots and waiting callers of a closed loop do not block the next loop."""
    limiter = RateLimiter(max_concurrent=1, per_minute=600_000)

    async def forever() -> None:
        with limiter.join() as ticket:
            await ticket.granted
            await asyncio.Event().wait()

    async def abandon() -> list[asyncio.Task[None]]:
        tasks = [asyncio.ensure_future(forever()) for _ in range(3)]
        await asyncio.sleep(0)
        return tasks

    async def use() -> None:
        with limiter.join() as ticket:
            await ticket.granted

    loop = asyncio.new_event_loop()
    tasks = loop.run_until_complete(abandon())
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is meant to be
    loop.close()
    del tasks, task, loop
    gc.collect()
    asyncio.run(asyncio.wait_for(use(), 10))
    assert limiter.in_flight == 0


def test_shortest_wait_includes_the_queue() -> None:
    """The estimated wait includes all callers in the queue."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=4, per_minute=10)
        tickets = [limiter.join() for _ in range(4)]
        assert limiter.shortest_wait() == pytest.approx(24.0)
        for ticket in tickets:
            limiter.release(ticket)

    run_virtual(main())


def test_the_pace_of_callers_in_front_counts_from_now_after_a_quiet_time() -> None:
    """A caller in front waits for a slot; the next place comes an interval after that caller's."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=1, per_minute=10)
        with limiter.join() as first:
            first.consume()
            await asyncio.sleep(30)
            with limiter.join():
                assert limiter.shortest_wait() == pytest.approx(6.0)

    run_virtual(main())


def test_a_slot_reports_whether_it_waited_and_what_it_holds() -> None:
    """The fields of a slot while it is granted at once, waits, is granted and is left."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=1, per_minute=10)
        with limiter.join() as first, limiter.join() as second:
            assert (first.waited, second.waited) == (False, True)
            assert (first.consumed, second.consumed) == (False, False)
            assert (first.granted_at, first.receipt is None) == (now(), False)
            assert math.isnan(second.granted_at)
            assert second.receipt is None
            first.consume()
            limiter.release(first)
            await second.granted
            assert (first.consumed, first.receipt) == (True, None)
            assert second.granted_at == pytest.approx(6.0)

    run_virtual(main())


def test_a_snapshot_lists_callers_and_limits() -> None:
    """Waiting callers, requests in flight, slots, and seconds between two images."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=2, per_minute=10, burst=2)
        slots = [limiter.join() for _ in range(5)]
        assert limiter.snapshot() == {
            "waiting": 3,
            "in_flight": 2,
            "max_concurrent": 2,
            "interval_s": 6.0,
        }
        for slot in slots:
            limiter.release(slot)

    run_virtual(main())


def test_a_cancelled_caller_that_has_not_left_yet_is_passed_over() -> None:
    """A slot that is freed in the moment of the cancellation goes to the next caller."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=1, per_minute=6000)
        with limiter.join() as first:
            await first.granted
            with limiter.join() as second, limiter.join() as third:
                second.granted.cancel()
                await asyncio.sleep(1)
                limiter.release(first)
                assert third.granted.done()
        assert limiter.in_flight == 0

    run_virtual(main())


def test_a_new_loop_ignores_clock_and_timer_of_the_old_one() -> None:
    """On a new loop the clock begins at 0; earlier places and timers do not count."""
    limiter = RateLimiter(max_concurrent=9, per_minute=10)

    async def leave_a_timer() -> None:
        await asyncio.sleep(100)
        slots = [limiter.join() for _ in range(3)]
        slots[0].consume()
        for slot in slots:
            limiter.release(slot)

    run_virtual(leave_a_timer())

    assert times_of(limiter, 3, busy=1) == [pytest.approx(6.0 * n, abs=1e-3) for n in range(3)]


def test_a_timer_of_a_closed_loop_is_replaced() -> None:
    """The earlier timer of a closed loop never fires, so the new loop needs its own."""
    limiter = RateLimiter(max_concurrent=9, per_minute=10)

    async def leave_a_timer() -> None:
        slots = [limiter.join() for _ in range(2)]
        slots[0].consume()
        for slot in slots:
            limiter.release(slot)

    run_virtual(leave_a_timer())

    async def later() -> None:
        await asyncio.sleep(100)
        with limiter.join() as first, limiter.join() as second:
            first.consume()
            await second.granted
            assert now() == pytest.approx(106.0)

    run_virtual(later())


def test_shortest_wait_counts_slots_where_a_latency_is_known() -> None:
    """With two slots and 20 s per image, the third waits for the first, the fifth for the third."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=2, per_minute=6000)
        waits = []
        tickets = []
        for _ in range(6):
            waits.append(limiter.shortest_wait(20.0))
            assert limiter.shortest_wait() < 0.1, "without a latency only the pace counts"
            tickets.append(limiter.join())
            await asyncio.sleep(0.01)
        assert waits == pytest.approx([0, 0, 20, 20, 40, 40], abs=0.1)
        await asyncio.sleep(25)
        assert limiter.shortest_wait(20.0) == pytest.approx(40.0, abs=0.1), "both are overdue"
        for ticket in tickets:
            limiter.release(ticket)
        assert limiter.shortest_wait(20.0) == pytest.approx(0.0, abs=0.1)

    run_virtual(main())


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(st.floats(0, 120), min_size=1, max_size=30),
    slots=st.integers(1, 4),
    per_minute=st.sampled_from([6.0, 10.0, 30.0, 6000.0]),
    burst=st.integers(1, 3),
    latency=st.sampled_from([0.5, 7.0, 20.0, 90.0]),
)
def test_shortest_wait_is_the_wait_of_a_new_caller(
    arrivals: list[float], slots: int, per_minute: float, burst: int, latency: float
) -> None:
    """The estimate is exact for equal latencies, and with a burst never too long."""
    limiter = RateLimiter(max_concurrent=slots, per_minute=per_minute, burst=burst)

    async def caller(at: float) -> None:
        await asyncio.sleep(at)
        expected, joined = limiter.shortest_wait(latency), now()
        with limiter.join() as ticket:
            await ticket.granted
            waited = now() - joined
            ticket.consume()
            await asyncio.sleep(latency)
        assert expected <= waited + 1e-3
        if burst == 1:
            assert expected == pytest.approx(waited, abs=1e-3)

    async def main() -> None:
        await asyncio.gather(*map(caller, arrivals))

    run_virtual(main())


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.floats(0, 60), st.floats(0, 30)), min_size=1, max_size=20),
    slots=st.integers(1, 3),
    per_minute=st.sampled_from([6.0, 10.0, 60.0]),
    burst=st.integers(1, 3),
)
def test_a_free_slot_is_taken_by_callers_that_need_not_wait_and_by_no_others(
    arrivals: list[tuple[float, float]], slots: int, per_minute: float, burst: int
) -> None:
    """``take_free`` passes nobody in the queue, and keeps the limits of ``join``."""
    limiter = RateLimiter(max_concurrent=slots, per_minute=per_minute, burst=burst)
    sent: list[float] = []

    async def caller(at: float, busy: float) -> None:
        await asyncio.sleep(at)
        waiting, is_free = limiter.snapshot()["waiting"], limiter.is_free()
        slot = limiter.take_free()
        assert (slot is not None) == is_free
        assert slot is None or not (slot.waited or waiting)
        with slot or limiter.join() as slot:
            assert slot.waited != is_free
            await slot.granted
            slot.consume()
            sent.append(now())
            assert limiter.in_flight <= slots
            await asyncio.sleep(busy)

    async def main() -> None:
        await asyncio.gather(*(caller(*each) for each in arrivals))
        assert limiter.in_flight == 0

    run_virtual(main())
    for first, last in zip(sent, sent[burst:], strict=False):
        assert last - first >= 60 / per_minute - 1e-3


def test_a_free_slot_that_is_not_used_gives_its_place_back() -> None:
    """The place of a taken slot counts only once its request is sent."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=1, per_minute=1)
        for _ in range(2):
            slot = limiter.take_free()
            assert slot is not None
            assert limiter.take_free() is None
            with slot:
                pass
        with limiter.take_free() or limiter.join() as slot:
            slot.consume()
        assert limiter.take_free() is None, "a minute has to pass"

    run_virtual(main())


Plan = list[tuple[float, float, float | None]]


@settings(max_examples=60, deadline=None)
@given(
    plan=st.lists(
        st.tuples(
            st.floats(0, 60),  # joins at
            st.floats(0, 30),  # is busy for
            st.none() | st.floats(0, 60),  # is cancelled at
        ),
        min_size=1,
        max_size=12,
    ),
    slots=st.integers(1, 3),
    per_minute=st.sampled_from([6.0, 10.0, 60.0]),
    burst=st.integers(1, 3),
)
def test_limits_hold_for_any_callers(plan: Plan, slots: int, per_minute: float, burst: int) -> None:
    """With random arrivals, durations and cancellations, limits hold and nothing leaks."""
    sent: list[float] = []
    limiter = RateLimiter(max_concurrent=slots, per_minute=per_minute, burst=burst)

    async def caller(start: float, busy: float, cancel_at: float | None) -> None:
        async def work() -> None:
            assert limiter.in_flight <= slots
            await asyncio.sleep(busy)

        async def run() -> None:
            await asyncio.sleep(start)
            await paced(limiter, work, sent)

        task = asyncio.create_task(run())
        if cancel_at is not None:
            asyncio.get_running_loop().call_at(cancel_at, task.cancel)
        await asyncio.wait({task})
        assert cancel_at is not None or task.exception() is None

    async def main() -> None:
        await asyncio.gather(*(caller(*one) for one in plan))
        assert limiter.in_flight == 0
        assert limiter.snapshot()["waiting"] == 0

    run_virtual(main())
    interval = 60 / per_minute
    for first, last in zip(sent, sent[burst:], strict=False):
        assert last - first >= interval - 1e-3  # no burst+1 requests within one interval


def test_a_timer_without_when_is_supported() -> None:
    """The limiter works with loops such as uvloop, whose expired timers have no ``when()``."""

    class Timer(asyncio.Handle):
        """A handle like uvloop's for a time that has passed."""

    class Loop(VirtualTimeLoop):
        def call_at(  # type: ignore[override]
            self, when: float, callback: Any, *args: Any, context: Any = None
        ) -> Timer:
            super().call_at(when, callback, *args, context=context)
            return Timer(callback, args, self)

    limiter = RateLimiter(max_concurrent=9, per_minute=60)
    sent: list[float] = []

    async def main() -> None:
        await asyncio.gather(*(paced(limiter, partial(asyncio.sleep, 0), sent) for _ in range(3)))

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())

    assert sent == [0, 1, 2]


def test_shortest_wait_of_a_caller_in_the_queue_counts_only_those_before_it() -> None:
    """Each waiting caller has its own estimate; a new caller comes after all of them."""

    async def main() -> None:
        limiter = RateLimiter(max_concurrent=4, per_minute=10)
        slots = [limiter.join() for _ in range(4)]
        waits = [limiter.shortest_wait(slot=slot) for slot in slots[1:]]
        assert waits == pytest.approx([6.0, 12.0, 18.0], abs=1e-3)
        assert limiter.shortest_wait() == pytest.approx(24.0, abs=1e-3)
        for slot in reversed(slots):
            limiter.release(slot)

    run_virtual(main())


def test_a_new_rate_changes_the_waits_in_proportion() -> None:
    """Half of the wait is left at twice the rate, the next callers have the new distance."""
    limiter = RateLimiter(max_concurrent=9, per_minute=10)
    sent: list[float] = []

    async def main() -> None:
        calls = [
            asyncio.create_task(paced(limiter, partial(asyncio.sleep, 0), sent)) for _ in range(4)
        ]
        await asyncio.sleep(2)
        limiter.reconfigure(max_concurrent=9, per_minute=20, burst=1)
        await asyncio.gather(*calls)

    run_virtual(main())
    assert sent == pytest.approx([0.0, 4.0, 7.0, 10.0], abs=1e-3)


def test_a_new_burst_serves_as_many_waiting_callers_at_once() -> None:
    """After an idle time, as many callers as the new burst start together."""
    limiter = RateLimiter(max_concurrent=9, per_minute=10)
    sent: list[float] = []

    async def main() -> None:
        limiter.reconfigure(max_concurrent=9, per_minute=10, burst=3)
        await asyncio.gather(*(paced(limiter, partial(asyncio.sleep, 0), sent) for _ in range(4)))

    run_virtual(main())
    assert sent == pytest.approx([0.0, 0.0, 0.0, 6.0], abs=1e-3)


@pytest.mark.parametrize(
    ("slots", "starts"), [(3, [0.0, 1.0, 1.0, 20.0]), (1, [0.0, 20.0, 40.0, 60.0])]
)
def test_a_new_number_of_slots_counts_at_once(slots: int, starts: list[float]) -> None:
    """More slots let waiting callers start; with fewer, requests in flight continue."""
    limiter = RateLimiter(max_concurrent=1, per_minute=6000)
    sent: list[float] = []

    async def main() -> None:
        calls = [
            asyncio.create_task(paced(limiter, partial(asyncio.sleep, 20), sent)) for _ in range(4)
        ]
        await asyncio.sleep(1)
        limiter.reconfigure(max_concurrent=slots, per_minute=6000, burst=2)
        await asyncio.gather(*calls)

    run_virtual(main())
    assert sent == pytest.approx(starts, abs=0.1)
