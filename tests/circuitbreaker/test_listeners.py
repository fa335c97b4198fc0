"""Listeners receive every transition in order and cannot harm the breaker."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from typing import TYPE_CHECKING

import pytest
from breaker_kit import fail, half_open, make_breaker, opened, send_call, succeed

from resilient_imagen.circuitbreaker import BreakerMetrics, BreakerState, CircuitBreaker, Transition
from resilient_imagen.reasons import BreakerOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.circuitbreaker import Permit

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def steps(transitions: list[Transition]) -> list[tuple[str, str]]:
    return [(each.from_state.value, each.to_state.value) for each in transitions]


def test_a_transition_has_all_fields() -> None:
    """A transition has cause, time, duration, metrics and origin."""
    breaker, clock = make_breaker(fail_max=2)
    transitions: list[Transition] = []
    breaker.subscribe(transitions.append, inline=True)
    clock.now = 7.0
    fail(breaker, 2, cause="overloaded", summary="503 UNAVAILABLE", origin="span")

    assert transitions == [
        Transition(
            name="google:pro",
            from_state=CLOSED,
            to_state=OPEN,
            at=7.0,
            cause="overloaded",
            summary="503 UNAVAILABLE",
            retry_after=60.0,
            metrics=BreakerMetrics(OPEN, 1.0, 2, 2, 2, 60.0, 60.0),
            origin="span",
            shadow=False,
        )
    ]


def test_listeners_receive_a_whole_outage_in_order() -> None:
    """Listeners receive each transition: open, probe, open again, probe, closed."""
    breaker, clock = make_breaker()
    transitions: list[Transition] = []
    breaker.subscribe(transitions.append, inline=True)
    fail(breaker, 3)
    clock.advance(60.0)
    fail(breaker)
    clock.advance(60.0)
    succeed(breaker)

    assert steps(transitions) == [
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "open"),
        ("open", "half_open"),
        ("half_open", "closed"),
    ]
    assert [each.retry_after for each in transitions] == [60.0, None, 60.0, None, None]
    assert [each.at for each in transitions] == [0.0, 60.0, 60.0, 120.0, 120.0]


def test_the_state_is_consistent_when_a_listener_runs() -> None:
    """A listener that reads the breaker sees the state of the transition that it received."""
    breaker, clock = make_breaker()
    seen: list[bool] = []

    def look(transition: Transition) -> None:
        seen.append(breaker.metrics() == transition.metrics)
        seen.append(breaker.snapshot()["state"] == transition.to_state)

    breaker.subscribe(look, inline=True)
    fail(breaker, 3)
    clock.advance(60.0)
    succeed(breaker)

    assert seen == [True, True, False, True, True, True], "after half-opening a probe is reserved"


def test_a_settlement_is_final_when_a_listener_runs() -> None:
    """A listener that settles the same permit again gets its settlement and counts nothing."""
    breaker, _ = make_breaker(fail_max=1)
    permit = send_call(breaker)
    inner = []
    breaker.subscribe(lambda _: inner.append(permit.settle(BreakerOutcome.SUCCESS)), inline=True)
    outer = permit.settle(BreakerOutcome.FAILURE)

    assert inner == [outer]


@pytest.mark.parametrize(
    "error", [ValueError("secret prompt"), asyncio.CancelledError(), AssertionError()]
)
def test_a_listener_that_raises_has_no_effect(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """If a listener raises, the breaker opens, others are called, and the type is logged."""
    breaker, _ = make_breaker()
    transitions: list[Transition] = []

    def broken(_transition: Transition) -> None:
        raise error

    breaker.subscribe(broken, inline=True)
    breaker.subscribe(transitions.append, inline=True)
    with caplog.at_level(logging.WARNING, logger="resilient_imagen"):
        fail(breaker, 3)

    assert breaker.metrics().state is OPEN
    assert steps(transitions) == [("closed", "open")]
    assert [record.getMessage() for record in caplog.records] == [
        f"a listener of breaker google:pro failed with {type(error).__name__}"
    ]


def test_ending_the_program_from_a_listener_is_not_swallowed() -> None:
    """KeyboardInterrupt propagates; the state is consistent and queued transitions come later."""
    breaker, _ = make_breaker(fail_max=1)
    transitions: list[Transition] = []

    def interrupt(_transition: Transition) -> None:
        stop()
        raise KeyboardInterrupt

    stop = breaker.subscribe(interrupt, inline=True)
    breaker.subscribe(transitions.append, inline=True)
    with pytest.raises(KeyboardInterrupt):
        fail(breaker)
    assert breaker.metrics().state is OPEN
    breaker.force_open = True

    assert steps(transitions) == [("open", "forced_open")]


def test_transitions_made_by_a_listener_are_queued() -> None:
    """A transition made by a listener is queued, so all listeners get both in the same order."""
    breaker, _ = make_breaker()
    first: list[Transition] = []
    last: list[Transition] = []

    def force(transition: Transition) -> None:
        first.append(transition)
        if transition.to_state is OPEN:
            breaker.force_open = True

    breaker.subscribe(force, inline=True)
    breaker.subscribe(last.append, inline=True)
    fail(breaker, 3)

    assert steps(first) == steps(last) == [("closed", "open"), ("open", "forced_open")]


def test_unsubscribing_ends_one_subscription() -> None:
    """A listener subscribed twice is called twice; after one unsubscribe it is called once."""
    breaker, _ = make_breaker()
    transitions: list[Transition] = []
    breaker.subscribe(transitions.append, inline=True)
    stop = breaker.subscribe(transitions.append, inline=True)
    breaker.force_open = True
    assert len(transitions) == 2
    stop()
    stop()
    breaker.force_open = False

    assert len(transitions) == 3


def test_subscribing_during_a_transition_is_allowed() -> None:
    """Listeners may be added and removed during a transition."""
    breaker, _ = make_breaker()
    transitions: list[str] = []

    def leave(_transition: Transition) -> None:
        transitions.append("left")
        stop()
        breaker.subscribe(lambda _: transitions.append("joined"), inline=True)

    stop = breaker.subscribe(leave, inline=True)
    breaker.subscribe(lambda _: transitions.append("stayed"), inline=True)
    breaker.force_open = True
    breaker.force_open = False

    assert transitions == ["left", "stayed", "stayed", "joined"]


@pytest.mark.parametrize(
    "look",
    [
        lambda breaker, _: breaker.metrics(),
        lambda breaker, _: breaker.snapshot(),
        lambda breaker, _: breaker.allows_calls(),
        lambda breaker, _: breaker.try_acquire_early(),
        lambda breaker, _: breaker.acquire(),
        lambda _, probe: probe.stale,
        lambda _, probe: probe.begin(),
        lambda _, probe: probe.settle(BreakerOutcome.NEUTRAL),
    ],
)
def test_a_time_out_is_reported_by_the_first_call_that_detects_it(
    look: Callable[[CircuitBreaker, Permit], object],
) -> None:
    """A probe's time-out is reported by the first call of any method that detects it."""
    breaker, clock, probe = half_open()
    transitions: list[Transition] = []
    breaker.subscribe(transitions.append, inline=True)
    clock.advance(62.0)
    look(breaker, probe)

    assert steps(transitions) == [("half_open", "open")]
    assert transitions[0].at == 121.0


def test_an_opening_found_before_queueing_is_reported_at_once() -> None:
    """An opening by a slow call, detected before queueing, is reported at once."""
    breaker, clock = make_breaker(slow_call=20.0, fail_max=1)
    send_call(breaker)
    transitions: list[Transition] = []
    breaker.subscribe(transitions.append, inline=True)
    clock.advance(20.0)
    breaker.try_acquire_early()

    assert steps(transitions) == [("closed", "open")]


def test_a_slow_listener_in_one_thread_delays_no_other_thread() -> None:
    """While a listener blocks one thread, another thread acquires and settles permits."""
    breaker, _ = opened()
    entered, leave = threading.Event(), threading.Event()

    def hang(transition: Transition) -> None:
        if transition.to_state is BreakerState.FORCED_OPEN:
            entered.set()
            assert leave.wait(timeout=30)

    def force() -> None:
        breaker.force_open = True

    transitions: list[Transition] = []
    breaker.subscribe(hang, inline=True)
    breaker.subscribe(transitions.append, inline=True)
    thread = threading.Thread(target=force)
    thread.start()
    assert entered.wait(timeout=30)
    breaker.force_open = False
    breaker.metrics()
    assert transitions == [], "in order: the blocked transition is delivered to all first"
    leave.set()
    thread.join(timeout=60)

    assert steps(transitions) == [("open", "forced_open"), ("forced_open", "open")]


def test_no_event_is_lost_or_out_of_order_among_threads() -> None:
    """With four threads that force and release, the transitions form an unbroken chain."""
    breaker, _ = make_breaker()
    transitions: list[Transition] = []
    breaker.subscribe(transitions.append, inline=True)

    def flip() -> None:
        for number in range(500):
            breaker.force_open = number % 2 == 0

    threads = [threading.Thread(target=flip) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=60)

    assert transitions
    assert all(old.to_state is new.from_state for old, new in itertools.pairwise(transitions))
    assert transitions[-1].to_state == breaker.metrics().state


def test_listeners_do_not_affect_the_state() -> None:
    """A listener that always raises does not change the final state."""

    def run(breaker: CircuitBreaker) -> BreakerMetrics:
        fail(breaker, 2)
        succeed(breaker)
        fail(breaker, 3)
        return breaker.metrics()

    def broken(_transition: Transition) -> None:
        raise RuntimeError

    disturbed, _ = make_breaker()
    disturbed.subscribe(broken, inline=True)
    plain, _ = make_breaker()

    assert run(disturbed) == run(plain)


def test_a_slow_listener_delays_no_call_and_receives_all_in_order() -> None:
    """A listener that blocks in the first transition does not delay calls, and misses none."""
    breaker, _ = make_breaker()
    entered, leave = threading.Event(), threading.Event()
    transitions: list[Transition] = []

    def slow(transition: Transition) -> None:
        entered.set()
        assert leave.wait(timeout=30)
        transitions.append(transition)

    breaker.subscribe(slow)
    fail(breaker, 3)
    assert entered.wait(timeout=30)
    breaker.force_open = True  # calls do not wait for the listener
    breaker.force_open = False
    assert transitions == []
    leave.set()
    received = threading.Event()
    breaker.subscribe(lambda _transition: received.set())
    breaker.force_open = True
    assert received.wait(timeout=30)

    assert steps(transitions) == [
        ("closed", "open"),
        ("open", "forced_open"),
        ("forced_open", "open"),
        ("open", "forced_open"),
    ]


def test_a_coroutine_function_is_rejected_as_a_listener() -> None:
    """A coroutine function is rejected at `subscribe`, because it would never be awaited."""
    breaker, _ = make_breaker()

    async def listen(_transition: Transition) -> None: ...

    with pytest.raises(TypeError, match=r"^a listener must be an ordinary function, not a coro"):
        breaker.subscribe(listen)  # type: ignore[arg-type]


def test_an_error_in_a_listeners_thread_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error in a listener's thread is logged, and later transitions are still delivered."""
    breaker, _ = make_breaker()
    received = threading.Event()

    def broken(_transition: Transition) -> None:
        raise RuntimeError("secret")

    breaker.subscribe(broken)
    breaker.subscribe(lambda _transition: received.set())
    breaker.force_open = True
    assert received.wait(timeout=30)
    assert [record.getMessage() for record in caplog.records] == [
        "a listener of breaker google:pro failed with RuntimeError"
    ]


def test_a_transition_while_the_interpreter_exits_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After Python has stopped its thread pools, listeners are skipped without a warning."""
    breaker, _ = make_breaker(fail_max=1)
    transitions: list[Transition] = []
    breaker.subscribe(transitions.append)
    monkeypatch.setattr("concurrent.futures.thread._shutdown", True)
    fail(breaker)

    assert breaker.metrics().state is OPEN
    assert (transitions, caplog.records) == ([], [])
