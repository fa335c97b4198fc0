"""Waiting for a probe's outcome across event loops; timers leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import TYPE_CHECKING

import pytest
from breaker_kit import ManualClock, fail, make_breaker, opened, send_call

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
    """Return a breaker on the running loop's time, without jitter."""
    return CircuitBreaker("google:pro", BreakerConfig(**numbers), random=lambda: 0.0)  # type: ignore[arg-type]


def open_now(breaker: CircuitBreaker) -> None:
    breaker.force_trip(cause="overloaded", retry_after=None)


async def until_due(breaker: CircuitBreaker) -> None:
    until = breaker.blocked_until()
    assert until is not None
    await asyncio.sleep(until - asyncio.get_running_loop().time())


def timers(loop: asyncio.AbstractEventLoop) -> int:
    """Return the active timers of `loop`."""
    return sum(not each.cancelled() for each in loop._scheduled)  # type: ignore[attr-defined]


def test_waiters_are_woken_by_the_probes_success() -> None:
    """Of 50 callers one probes and 49 wait; all are admitted after its success."""

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


def test_waiters_are_woken_by_a_cancelled_probe() -> None:
    """A cancelled probe wakes the waiting callers, and one of them is the next probe."""

    async def scenario() -> None:
        breaker = loop_breaker()
        open_now(breaker)
        await until_due(breaker)
        probe = send_call(breaker)
        waiting = breaker.wait_for_change()
        probe.settle(BreakerOutcome.NEUTRAL)
        assert waiting.done(), "at once"
        assert send_call(breaker).probe

    run_virtual(scenario())


@pytest.mark.parametrize("sent", [True, False])
def test_waiters_are_woken_at_the_deadline_of_a_hanging_probe(sent: bool) -> None:
    """A timer wakes waiters at the deadline: sent probes fail, unsent ones free their place."""

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


def test_the_end_of_an_open_period_wakes_no_waiter() -> None:
    """The future of `wait_for_change` stays pending at the end of an open period."""

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


def test_every_change_of_state_wakes() -> None:
    """Opening, forcing, releasing, reconfiguring and a sibling's trip wake waiters."""

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


def test_a_cancelled_waiter_is_removed() -> None:
    """After 99 of 100 waiters are cancelled, no state of them is left, and the last is woken."""

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


def test_wait_for_change_needs_a_loop() -> None:
    """`wait_for_change` outside a loop raises an error."""
    breaker, _ = make_breaker()

    with pytest.raises(RuntimeError, match="no running event loop"):
        breaker.wait_for_change()


NO_LOOP = "^a breaker without a clock needs a running event loop$"


def test_acquiring_without_a_loop_or_a_clock_is_an_error() -> None:
    """Without a loop and without a clock, acquiring raises an error that names what is missing."""
    breaker = loop_breaker()

    with pytest.raises(RuntimeError, match=NO_LOOP):
        breaker.acquire()
    with pytest.raises(RuntimeError, match=NO_LOOP):
        breaker.try_acquire_early()


def test_without_a_loop_the_time_is_that_of_the_last_call() -> None:
    """After the loop has ended, snapshots show the last moment, and settling is allowed."""
    breaker = loop_breaker(fail_max=1)

    async def scenario() -> Permit:
        permit = send_call(breaker)
        await asyncio.sleep(10.0)
        send_call(breaker)
        return permit

    permit = run_virtual(scenario())

    assert breaker.snapshot()["since_s"] == pytest.approx(10.0)
    assert permit.settle(BreakerOutcome.FAILURE).transition == "closed_to_open"
    assert breaker.metrics().retry_after == 60.0


def test_the_state_continues_on_the_next_loop() -> None:
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
        return float(send_call(breaker).probe)

    run_virtual(first())

    assert run_virtual(second()) == 1.0


def test_time_continues_on_a_loop_that_is_slightly_behind() -> None:
    """On a loop that is half a second behind, time continues from the last moment."""
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
        return send_call(breaker).probe

    assert run_virtual(first()) == 0.0
    later = VirtualTimeLoop()
    later.advance(561.0)
    try:
        assert later.run_until_complete(second())
    finally:
        later.close()


@pytest.mark.parametrize("sent", [True, False])
def test_a_probe_of_a_closed_loop_frees_its_place(sent: bool) -> None:
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
        probe = send_call(breaker)
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
        assert send_call(breaker).probe

    async def second() -> None:
        await breaker.wait_for_change()
        assert send_call(breaker).probe

    run_virtual(first())
    run_virtual(second())


def test_a_call_of_a_closed_loop_never_becomes_slow() -> None:
    """A call of a closed loop does not become slow."""
    breaker = loop_breaker(fail_max=1, slow_call=20.0)

    async def first() -> None:
        send_call(breaker)
        await asyncio.sleep(10.0)

    async def second() -> None:
        send_call(breaker).settle(BreakerOutcome.NEUTRAL)
        await asyncio.sleep(100.0)
        assert breaker.metrics().state is BreakerState.CLOSED

    run_virtual(first())
    run_virtual(second())


def test_waiters_of_a_closed_loop_are_released_by_the_next_loop() -> None:
    """The next acquisition on another loop releases futures of a closed loop."""
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


def test_a_timer_of_another_loop_has_no_effect() -> None:
    """A timer on a loop that runs again later affects neither the breaker nor its new timer."""
    breaker = loop_breaker(slow_call=20.0)
    one, other = VirtualTimeLoop(), VirtualTimeLoop()

    async def send() -> Permit:
        return send_call(breaker)

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
    """Timers are cancelled with the probe's outcome, and calls keep at most one."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        breaker = loop_breaker(slow_call=20.0)
        for _ in range(100):
            send_call(breaker).settle(BreakerOutcome.SUCCESS)
        assert timers(loop) == 0
        calls = [send_call(breaker) for _ in range(100)]
        assert timers(loop) == 1
        for each in calls:
            each.settle(BreakerOutcome.SUCCESS)
        assert timers(loop) == 0
        open_now(breaker)
        assert timers(loop) == 0
        await until_due(breaker)
        probe = send_call(breaker)
        assert timers(loop) == 1
        probe.settle(BreakerOutcome.FAILURE)
        assert timers(loop) == 0

    run_virtual(scenario())


def test_a_timer_moves_on_to_the_next_call() -> None:
    """If the first call ends in time, the timer fires for the second call."""

    async def scenario() -> float:
        breaker = loop_breaker(slow_call=20.0, fail_max=1)
        first = send_call(breaker)
        await asyncio.sleep(15.0)
        send_call(breaker)
        first.settle(BreakerOutcome.SUCCESS)
        await breaker.wait_for_change()
        return asyncio.get_running_loop().time()

    assert run_virtual(scenario()) == pytest.approx(35.0)


def test_a_timer_fires_after_a_quarter_of_a_second() -> None:
    """A delay of a quarter of a second is not rounded."""

    async def scenario() -> float:
        breaker = loop_breaker(slow_call=0.25, fail_max=1)
        send_call(breaker)
        await breaker.wait_for_change()
        return asyncio.get_running_loop().time()

    assert run_virtual(scenario()) == pytest.approx(0.25)


def test_an_earlier_moment_resets_the_timer() -> None:
    """A lower threshold fires at its own time, not at that of the old timer."""

    async def scenario() -> float:
        breaker = loop_breaker(slow_call=500.0, fail_max=1)
        send_call(breaker)
        breaker.reconfigure(BreakerConfig(slow_call=20.0, fail_max=1))
        await breaker.wait_for_change()
        return asyncio.get_running_loop().time()

    assert run_virtual(scenario()) == pytest.approx(20.0)


def test_an_unused_breaker_is_garbage_collected() -> None:
    """Neither listeners nor a loop keep a breaker alive after its last timer."""

    async def scenario() -> weakref.ref[CircuitBreaker]:
        breaker = loop_breaker(slow_call=20.0)
        breaker.subscribe(lambda _transition: None, inline=True)
        send_call(breaker).settle(BreakerOutcome.SUCCESS)
        breaker.wait_for_change().cancel()
        await asyncio.sleep(30.0)
        return weakref.ref(breaker)

    gone = run_virtual(scenario())
    gc.collect()

    assert gone() is None


def test_an_injected_clock_works_on_a_loop() -> None:
    """With an injected clock, the timer is re-armed until that clock reaches the moment."""

    async def scenario() -> None:
        breaker, clock = opened(ManualClock(), probe_deadline=5.0)
        clock.advance(60.0)
        send_call(breaker)
        future = breaker.wait_for_change()
        await asyncio.sleep(20.0)
        assert not future.done()
        clock.advance(5.0)
        await future

    run_virtual(scenario())


def test_threads_with_separate_loops_may_share_a_breaker() -> None:
    """With four threads, every outcome counts once and the limit on probes holds."""
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


def test_the_limit_on_probes_holds_for_many_threads() -> None:
    """The limit on probes holds for simultaneous callers of several threads."""
    breaker, clock = opened(half_open_calls=3)
    clock.advance(60.0)
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
    """A future of another thread's loop is resolved on that loop."""
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
    """All waiters of many threads are woken while some of them are cancelled."""
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
    """A change after a loop with a waiter was closed raises no error."""
    breaker, _ = make_breaker(fail_max=1)
    loop = VirtualTimeLoop()

    async def wait() -> asyncio.Future[None]:
        return breaker.wait_for_change()

    future = loop.run_until_complete(wait())
    loop.close()
    fail(breaker)

    assert not future.done()
    assert len(breaker._waiters) == 0


def test_reading_from_another_thread_uses_the_running_loops_time() -> None:
    """A reading from an exporter's thread uses the loop's time, not that of the last call."""

    async def scenario() -> None:
        breaker = CircuitBreaker(
            "thumbnails", BreakerConfig(window=0.2, fail_max=99), random=lambda: 0.0
        )
        breaker.acquire()
        fail(breaker, 2)
        assert breaker.metrics().window_calls == 2
        async with asyncio.timeout(20):
            while (await asyncio.to_thread(breaker.metrics)).window_calls:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.02)

    asyncio.run(scenario())
