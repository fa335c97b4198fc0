"""Waiting for a verdict, on loops that come and go; timers leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import TYPE_CHECKING

import pytest
from breaker_kit import HandClock, fail, let_in, make_breaker, opened

from resilient_imagen.circuitbreaker import (
    BreakerConfig,
    BreakerState,
    CircuitBreaker,
    Permit,
    Rejection,
)
from resilient_imagen.reasons import BreakerOutcome
from resilient_imagen.virtualtime import VirtualTimeLoop, run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable


def loop_breaker(**numbers: object) -> CircuitBreaker:
    """A breaker on the running loop's time, without jitter."""
    return CircuitBreaker("google:pro", BreakerConfig(**numbers), random=lambda: 0.0)  # type: ignore[arg-type]


def open_now(breaker: CircuitBreaker) -> None:
    breaker.force_trip(cause="overloaded", retry_after=None)


async def until_due(breaker: CircuitBreaker) -> None:
    until = breaker.blocked_until()
    assert until is not None
    await asyncio.sleep(until - asyncio.get_running_loop().time())


def timers(loop: asyncio.AbstractEventLoop) -> int:
    """Timers that are still going to ring on `loop`."""
    return sum(not each.cancelled() for each in loop._scheduled)  # type: ignore[attr-defined]


def test_waiters_hear_the_verdict_of_the_probe() -> None:
    """Of 50 callers one is the probe; the 49 others wait, and all get through once it is back."""

    async def caller(breaker: CircuitBreaker) -> str:
        while isinstance(answer := breaker.acquire(), Rejection):
            assert answer.probing
            await breaker.wait_for_change()
        answer.begin()
        await asyncio.sleep(10.0 if answer.probe else 0.0)
        answer.settle(BreakerOutcome.SUCCESS)
        return "probe" if answer.probe else "through"

    async def scenario() -> list[str]:
        breaker = loop_breaker()
        open_now(breaker)
        await until_due(breaker)
        return await asyncio.gather(*(caller(breaker) for _ in range(50)))

    ways = run_virtual(scenario())

    assert sorted(ways) == ["probe"] + ["through"] * 49


def test_waiters_hear_when_the_probe_left_without_a_verdict() -> None:
    """A cancelled probe wakes the waiting callers, and one of them is the next probe."""

    async def scenario() -> None:
        breaker = loop_breaker()
        open_now(breaker)
        await until_due(breaker)
        probe = let_in(breaker)
        waiting = breaker.wait_for_change()
        probe.settle(BreakerOutcome.NEUTRAL)
        assert waiting.done(), "at once"
        assert let_in(breaker).probe

    run_virtual(scenario())


@pytest.mark.parametrize("sent", [True, False])
def test_waiters_hear_of_a_probe_that_hangs(sent: bool) -> None:
    """By a timer, at the deadline: of the failure if it was sent, else of the free place."""

    async def scenario() -> tuple[float, BreakerState]:
        breaker = loop_breaker(probe_deadline=61.0)
        open_now(breaker)
        await until_due(breaker)
        began = asyncio.get_running_loop().time()
        probe = breaker.try_acquire_early()
        assert isinstance(probe, Permit)
        if sent:
            probe.begin()
        await breaker.wait_for_change()
        return asyncio.get_running_loop().time() - began, breaker.metrics().state

    waited, state = run_virtual(scenario())

    assert waited == pytest.approx(61.0)
    assert state is (BreakerState.OPEN if sent else BreakerState.HALF_OPEN)


def test_mere_dueness_wakes_nobody() -> None:
    """The end of an opening is no change: the future is still pending long after it."""

    async def scenario() -> None:
        breaker = loop_breaker()
        open_now(breaker)
        future = breaker.wait_for_change()
        await until_due(breaker)
        await asyncio.sleep(1000.0)
        assert not future.done()
        breaker.try_acquire_early()
        assert future.done(), "the first probe is a change"

    run_virtual(scenario())


def test_every_change_that_callers_meet_wakes() -> None:
    """Opening, forcing and taking it back, other numbers, and a sibling's trip all wake."""

    async def scenario() -> None:
        breaker = loop_breaker(fail_max=1)
        changes: list[Callable[[], None]] = [
            lambda: fail(breaker),
            lambda: setattr(breaker, "force_open", True),
            lambda: setattr(breaker, "force_open", False),
            lambda: breaker.reconfigure(BreakerConfig(half_open_calls=2)),
        ]
        for change in changes:
            future = breaker.wait_for_change()
            change()
            assert future.done()
        future = breaker.wait_for_change()
        breaker.force_open = False
        open_now(breaker)
        assert not future.done(), "nothing new"
        future.cancel()

    run_virtual(scenario())


def test_a_cancelled_waiter_is_forgotten_and_disturbs_no_other() -> None:
    """After 99 of 100 waiters are cancelled, none of their state is left, and the last is woken."""

    async def scenario() -> None:
        breaker = loop_breaker(fail_max=1)
        waits = [asyncio.ensure_future(breaker.wait_for_change()) for _ in range(100)]
        for each in waits[1:]:
            each.cancel()
        await asyncio.sleep(0)
        assert len(breaker._waiters) == 1
        fail(breaker)
        assert waits[0].done()
        assert not waits[0].cancelled()
        assert len(breaker._waiters) == 0

    run_virtual(scenario())


def test_waiters_are_woken_in_the_order_they_came() -> None:
    """The caller that has waited longest is woken first, so it becomes the next probe."""

    async def scenario() -> list[int]:
        breaker = loop_breaker(fail_max=1)
        order: list[int] = []
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: errors.append(what))

        async def wait(number: int) -> None:
            await breaker.wait_for_change()
            order.append(number)

        waits = [asyncio.ensure_future(wait(number)) for number in range(50)]
        await asyncio.sleep(0)
        waits[7].cancel()
        fail(breaker)
        await asyncio.gather(*waits, return_exceptions=True)
        await asyncio.sleep(0)
        assert errors == []
        return order

    assert run_virtual(scenario()) == [number for number in range(50) if number != 7]


def test_changed_needs_a_loop() -> None:
    """`wait_for_change` outside a loop raises an error."""
    breaker, _ = make_breaker()

    with pytest.raises(RuntimeError, match="no running event loop"):
        breaker.wait_for_change()


NO_LOOP = "^a breaker without a clock of its own needs a running loop$"


def test_asking_without_a_loop_or_a_clock_is_an_error() -> None:
    """Without a loop and without a clock, acquiring raises an error that names what is missing."""
    breaker = loop_breaker()

    with pytest.raises(RuntimeError, match=NO_LOOP):
        breaker.acquire()
    with pytest.raises(RuntimeError, match=NO_LOOP):
        breaker.try_acquire_early()


def test_looking_and_settling_without_a_loop_stand_still_in_time() -> None:
    """After the loop has ended a snapshot shows the last moment, and a late settle does no harm."""
    breaker = loop_breaker(fail_max=1)

    async def scenario() -> Permit:
        permit = let_in(breaker)
        await asyncio.sleep(10.0)
        let_in(breaker)
        return permit

    permit = run_virtual(scenario())

    assert breaker.snapshot()["since_s"] == pytest.approx(10.0)
    assert permit.settle(BreakerOutcome.FAILURE).transition == "closed_to_open"
    assert breaker.metrics().retry_after == 60.0


def test_state_goes_over_from_one_loop_to_the_next() -> None:
    """On a new loop whose time begins at 0, the remaining open period continues."""
    breaker = loop_breaker(fail_max=1)

    async def first() -> None:
        await asyncio.sleep(5000.0)
        fail(breaker)
        await asyncio.sleep(20.0)
        assert breaker.metrics().retry_after == pytest.approx(40.0)

    async def second() -> float:
        assert breaker.metrics().retry_after == pytest.approx(40.0)
        until = breaker.blocked_until()
        assert until == pytest.approx(40.0), "in the time of this loop"
        await until_due(breaker)
        return float(let_in(breaker).probe)

    run_virtual(first())

    assert run_virtual(second()) == 1.0


def test_a_loop_that_begins_a_little_earlier_loses_no_time() -> None:
    """Half a second behind the last moment of the loop before, time goes on from that moment."""
    breaker = loop_breaker(fail_max=1)

    async def first() -> None:
        await asyncio.sleep(0.5)
        breaker.metrics()
        await asyncio.sleep(0.5)
        fail(breaker)

    async def second() -> float | None:
        return breaker.blocked_until()

    run_virtual(first())

    assert run_virtual(second()) == pytest.approx(60.0)


def test_time_between_two_loops_counts() -> None:
    """Time between two loops counts; a breaker's time begins at its first use."""
    breaker = loop_breaker(fail_max=1)

    async def first() -> float:
        await asyncio.sleep(500.0)
        since: float = breaker.snapshot()["since_s"]
        fail(breaker)
        return since

    async def second() -> bool:
        return let_in(breaker).probe

    assert run_virtual(first()) == 0.0
    later = VirtualTimeLoop()
    later.advance(561.0)
    try:
        assert later.run_until_complete(second())
    finally:
        later.close()


@pytest.mark.parametrize("sent", [True, False])
def test_a_probe_left_behind_by_a_closed_loop_frees_its_place(sent: bool) -> None:
    """The probe of a closed loop frees its place without a failure; the next caller probes."""
    breaker = loop_breaker(fail_max=1, probe_deadline=61.0, slow_call=20.0)
    left_behind = []

    async def first() -> None:
        fail(breaker)
        await until_due(breaker)
        probe = breaker.try_acquire_early()
        assert isinstance(probe, Permit)
        if sent:
            probe.begin()
        left_behind.append(probe)

    async def second() -> None:
        probe = let_in(breaker)
        assert probe.probe
        assert left_behind[0].settle(BreakerOutcome.FAILURE).counted == "stale"
        await asyncio.sleep(10.0)
        assert probe.settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"

    run_virtual(first())
    run_virtual(second())


def test_a_caller_waits_for_no_probe_of_a_closed_loop() -> None:
    """A caller that waits on the next loop is woken, because the place of that probe is free."""
    breaker = loop_breaker(fail_max=1)

    async def first() -> None:
        fail(breaker)
        await until_due(breaker)
        assert let_in(breaker).probe

    async def second() -> None:
        await breaker.wait_for_change()
        assert let_in(breaker).probe

    run_virtual(first())
    run_virtual(second())


def test_a_call_left_behind_by_a_closed_loop_is_never_slow() -> None:
    """Its time ended with its loop."""
    breaker = loop_breaker(fail_max=1, slow_call=20.0)

    async def first() -> None:
        let_in(breaker)
        await asyncio.sleep(10.0)

    async def second() -> None:
        let_in(breaker).settle(BreakerOutcome.NEUTRAL)
        await asyncio.sleep(100.0)
        assert breaker.metrics().state is BreakerState.CLOSED

    run_virtual(first())
    run_virtual(second())


def test_waiters_of_a_closed_loop_are_let_go_when_another_one_asks() -> None:
    """Nothing need change for that: a future keeps its caller alive, with all that it holds."""
    breaker = loop_breaker()
    loop = VirtualTimeLoop()

    async def wait() -> asyncio.Future[None]:
        open_now(breaker)
        return breaker.wait_for_change()

    async def ask() -> None:
        assert isinstance(breaker.acquire(), Rejection)

    loop.run_until_complete(wait())
    loop.close()
    assert len(breaker._waiters) == 1
    run_virtual(ask())

    assert len(breaker._waiters) == 0


def test_a_timer_left_on_another_loop_does_no_harm() -> None:
    """A loop that runs again after the breaker has moved on disturbs neither it nor its timer."""
    breaker = loop_breaker(slow_call=20.0)
    one, other = VirtualTimeLoop(), VirtualTimeLoop()

    async def send() -> Permit:
        return let_in(breaker)

    try:
        first = one.run_until_complete(send())
        second = other.run_until_complete(send())
        one.run_until_complete(asyncio.sleep(15.0))
        one.run_until_complete(asyncio.sleep(15.0))
        assert breaker.metrics().consecutive == 2, "both were slow by then"
        assert timers(other) == 1
        other.run_until_complete(asyncio.sleep(30.0))
        assert timers(other) == 0
    finally:
        one.close()
        other.close()

    assert [each.settle(BreakerOutcome.SUCCESS).counted for each in (first, second)] == ["slow"] * 2


def test_no_timer_is_left_when_nothing_is_pending() -> None:
    """Timers are cancelled with the verdict, and calls that come and go keep at most one."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        breaker = loop_breaker(slow_call=20.0)
        for _ in range(100):
            let_in(breaker).settle(BreakerOutcome.SUCCESS)
        assert timers(loop) == 0
        calls = [let_in(breaker) for _ in range(100)]
        assert timers(loop) == 1
        for each in calls:
            each.settle(BreakerOutcome.SUCCESS)
        assert timers(loop) == 0
        open_now(breaker)
        assert timers(loop) == 0
        await until_due(breaker)
        probe = let_in(breaker)
        assert timers(loop) == 1
        probe.settle(BreakerOutcome.FAILURE)
        assert timers(loop) == 0

    run_virtual(scenario())


def test_a_timer_rings_for_the_next_after_the_first_has_ended() -> None:
    """The first call ends in time, so the timer set for it goes on to the second."""

    async def scenario() -> float:
        breaker = loop_breaker(slow_call=20.0, fail_max=1)
        first = let_in(breaker)
        await asyncio.sleep(15.0)
        let_in(breaker)
        first.settle(BreakerOutcome.SUCCESS)
        await breaker.wait_for_change()
        return asyncio.get_running_loop().time()

    assert run_virtual(scenario()) == pytest.approx(35.0)


def test_a_timer_rings_in_time_for_a_short_while() -> None:
    """A quarter of a second is not rounded up to anything."""

    async def scenario() -> float:
        breaker = loop_breaker(slow_call=0.25, fail_max=1)
        let_in(breaker)
        await breaker.wait_for_change()
        return asyncio.get_running_loop().time()

    assert run_virtual(scenario()) == pytest.approx(0.25)


def test_an_earlier_moment_sets_the_timer_anew() -> None:
    """A lower threshold wakes at its own time, not at that of the old timer."""

    async def scenario() -> float:
        breaker = loop_breaker(slow_call=500.0, fail_max=1)
        let_in(breaker)
        breaker.reconfigure(BreakerConfig(slow_call=20.0, fail_max=1))
        await breaker.wait_for_change()
        return asyncio.get_running_loop().time()

    assert run_virtual(scenario()) == pytest.approx(20.0)


def test_a_gate_nobody_uses_any_more_is_collected() -> None:
    """Neither its listeners nor a loop keep it alive once its last timer is gone."""

    async def scenario() -> weakref.ref[CircuitBreaker]:
        breaker = loop_breaker(slow_call=20.0)
        breaker.subscribe(lambda _transition: None, inline=True)
        let_in(breaker).settle(BreakerOutcome.SUCCESS)
        breaker.wait_for_change().cancel()
        await asyncio.sleep(30.0)
        return weakref.ref(breaker)

    gone = run_virtual(scenario())
    gc.collect()

    assert gone() is None


def test_a_clock_of_its_own_works_on_a_loop_too() -> None:
    """With an injected clock the timer looks again until that clock shows the moment."""

    async def scenario() -> None:
        breaker, clock = opened(HandClock(), probe_deadline=5.0)
        clock.pass_(60.0)
        let_in(breaker)
        future = breaker.wait_for_change()
        await asyncio.sleep(20.0)
        assert not future.done()
        clock.pass_(5.0)
        await future

    run_virtual(scenario())


def test_threads_with_loops_of_their_own_corrupt_nothing() -> None:
    """Misused from four threads at once, every outcome is counted once and probes stay capped."""
    breaker = loop_breaker(fail_max=10**9, min_calls=10**9, window=3600.0)
    rounds, errors = 2000, []
    barrier = threading.Barrier(4)

    async def hammer() -> None:
        for number in range(rounds):
            call = breaker.acquire()
            assert isinstance(call, Permit)
            call.begin()
            call.settle(BreakerOutcome.FAILURE if number % 2 else BreakerOutcome.SUCCESS)

    def run() -> None:
        try:
            barrier.wait(timeout=30)
            asyncio.run(hammer())
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=60)

    assert errors == []
    assert breaker.metrics().window_calls == 4 * rounds
    assert breaker.snapshot()["window"]["failures"] == 2 * rounds


def test_of_many_threads_at_once_only_the_probes_get_in() -> None:
    """The cap on probes holds when callers of several threads ask in the same moment."""
    breaker, clock = opened(half_open_calls=3)
    clock.pass_(60.0)
    barrier, answers = threading.Barrier(8), []

    def ask() -> None:
        barrier.wait(timeout=30)
        answers.extend([breaker.acquire() for _ in range(50)])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=60)

    assert sum(isinstance(each, Permit) for each in answers) == 3
    assert len(answers) == 400


def test_a_waiter_is_woken_from_another_thread() -> None:
    """A future of a loop in another thread is resolved there, not from here."""
    breaker, _ = make_breaker(fail_max=1)
    waiting = threading.Event()
    woken = []

    async def wait() -> None:
        future = breaker.wait_for_change()
        waiting.set()
        await asyncio.wait_for(future, timeout=30)
        woken.append(threading.current_thread().name)

    thread = threading.Thread(target=lambda: asyncio.run(wait()), name="waiter")
    thread.start()
    assert waiting.wait(timeout=30)
    fail(breaker)
    thread.join(timeout=60)

    assert woken == ["waiter"]


def test_many_waiters_of_other_threads_are_all_woken() -> None:
    """All waiters of many threads are woken, while some of them are already cancelled."""
    breaker, _ = make_breaker(fail_max=1)
    ready, woken = threading.Barrier(5), []

    async def wait() -> None:
        futures = [breaker.wait_for_change() for _ in range(500)]
        ready.wait(timeout=30)
        await asyncio.wait_for(asyncio.gather(*futures), timeout=30)
        woken.append(len(futures))

    threads = [threading.Thread(target=lambda: asyncio.run(wait())) for _ in range(4)]
    for each in threads:
        each.start()
    ready.wait(timeout=30)
    fail(breaker)
    for each in threads:
        each.join(timeout=60)

    assert woken == [500] * 4


def test_a_waiter_of_a_closed_loop_is_dropped() -> None:
    """A change after a loop was closed with a waiter on it goes by without an error."""
    breaker, _ = make_breaker(fail_max=1)
    loop = VirtualTimeLoop()

    async def wait() -> asyncio.Future[None]:
        return breaker.wait_for_change()

    future = loop.run_until_complete(wait())
    loop.close()
    fail(breaker)

    assert not future.done()
    assert len(breaker._waiters) == 0


def test_who_reads_from_another_thread_sees_the_running_loops_time() -> None:
    """A gauge read by an exporter's thread is as old as the loop is, not as the last call."""

    async def scenario() -> None:
        breaker = CircuitBreaker(
            "thumbnails", BreakerConfig(window=0.2, fail_max=99), random=lambda: 0.0
        )
        breaker.acquire()
        fail(breaker, 2)
        assert breaker.metrics().window_calls == 2
        async with asyncio.timeout(20):
            while (await asyncio.to_thread(breaker.metrics)).window_calls:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)

    asyncio.run(scenario())
