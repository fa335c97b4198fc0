"""Orders of an operator that hold a breaker open or closed for a time, or close it at once."""

from __future__ import annotations

import json
import math

import pytest
from breaker_kit import (
    changes,
    fail,
    half_open,
    make_breaker,
    opened,
    outcome,
    refused,
    send_call,
    succeed,
)
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen.circuitbreaker import BreakerMode, BreakerState, Hold
from resilient_imagen.reasons import BreakerOutcome

OPEN, CLOSED = Hold(opens=True, until=30.0), Hold(opens=False, until=30.0)


def test_a_breaker_held_open_rejects_all_calls_until_the_order_ends() -> None:
    """The rejection has the time until the order ends, and no cause, because nothing failed."""
    breaker, clock = make_breaker()
    breaker.hold(OPEN)
    clock.advance(10.0)
    rejection = refused(breaker)
    assert (rejection.state, rejection.cause) == (BreakerState.FORCED_OPEN, None)
    assert rejection.retry_after == 20.0
    assert breaker.blocked_until() == 30.0
    assert breaker.snapshot()["held"] == "open"
    breaker.hold(None)
    assert breaker.allows_calls()
    assert "held" not in breaker.snapshot()


def test_an_expired_hold_rejects_until_it_is_removed() -> None:
    """The client removes the hold; until then rejections have a wait of 0, never a negative one."""
    breaker, clock = make_breaker()
    breaker.hold(OPEN)
    clock.advance(31.0)
    assert refused(breaker).retry_after == 0.0


def test_calls_in_flight_are_counted_while_it_is_held_open() -> None:
    """After the hold the breaker is in the state to which the outcomes of those calls lead."""
    breaker, _ = make_breaker(fail_max=2)
    calls = [send_call(breaker) for _ in range(2)]
    breaker.hold(OPEN)
    for call in calls:
        call.settle(BreakerOutcome.FAILURE, cause="overloaded")
    breaker.hold(None)
    assert refused(breaker).cause == "overloaded"


def test_force_open_takes_precedence_over_an_order() -> None:
    """`force_open` stays in force after an order ends, and has no known end."""
    breaker, _ = make_breaker()
    breaker.hold(CLOSED)
    breaker.force_open = True
    assert refused(breaker).retry_after is None
    assert breaker.blocked_until() == math.inf
    breaker.hold(None)
    assert not breaker.allows_calls()


def test_held_closed_admits_calls_that_the_breaker_would_reject() -> None:
    """The state machine continues without effect, and its state applies when the hold ends."""
    breaker, clock = opened()
    seen = changes(breaker)
    breaker.hold(CLOSED)
    assert breaker.metrics().state == "closed"
    assert breaker.snapshot()["held"] == "closed"
    assert breaker.snapshot()["shadow"]["state"] == "open"
    fail(breaker, 5)
    clock.advance(20.0)
    breaker.hold(None)
    assert refused(breaker).retry_after == 40.0
    assert seen == [("open", "closed"), ("closed", "open")]


def test_a_probe_that_succeeds_while_held_closed_closes_it() -> None:
    """The first call after the open period is a probe, but the limit on probes does not apply."""
    breaker, clock = opened()
    breaker.hold(CLOSED)
    clock.advance(61.0)
    succeed(breaker)
    breaker.hold(None)
    assert breaker.metrics().state == "closed"


@pytest.mark.parametrize("even", [False, True])
def test_a_fatal_failure_ends_held_closed(even: bool) -> None:
    """An exhausted quota before or during the hold opens the breaker, unless the order includes
    fatal failures.
    """
    breaker, _ = make_breaker(reset_max=600.0)
    breaker.hold(Hold(opens=False, until=30.0, even_if_fatal=even))
    outcome(breaker, BreakerOutcome.TRIP, cause="quota_exhausted")
    assert breaker.allows_calls() is even
    breaker.hold(None)
    assert refused(breaker).cause == "quota_exhausted"
    breaker.hold(Hold(opens=False, until=30.0, even_if_fatal=even))
    assert breaker.allows_calls() is even


def test_a_fatal_failure_that_lengthens_an_open_period_ends_the_held_state() -> None:
    """The visible state changes to open, although the state machine was open already."""
    breaker, _ = make_breaker(fail_max=1)
    late = send_call(breaker)
    breaker.hold(CLOSED)
    fail(breaker, cause="overloaded")
    assert breaker.allows_calls()
    late.settle(BreakerOutcome.TRIP, cause="unauthenticated")
    assert refused(breaker).cause == "unauthenticated"


def test_a_breaker_in_mode_off_can_be_held_open_only() -> None:
    """In mode off the breaker rejects only by an order."""
    breaker, _ = make_breaker(mode=BreakerMode.OFF)
    breaker.hold(CLOSED)
    assert breaker.allows_calls()
    breaker.hold(OPEN)
    assert not breaker.allows_calls()


def test_close_resets_the_counts() -> None:
    """After `close` the breaker trips again at its threshold, as after a successful probe."""
    breaker, _ = opened()
    seen = changes(breaker)
    assert breaker.close()
    assert breaker.metrics().consecutive == 0
    fail(breaker, 3, cause="overloaded")
    assert refused(breaker).retry_after == 60.0
    assert seen == [("open", "closed"), ("closed", "open")]


def test_close_ends_the_half_open_state() -> None:
    """The vote of a probe in flight no longer counts."""
    breaker, _, probe = half_open()
    assert breaker.close()
    assert probe.settle(BreakerOutcome.FAILURE).counted == "stale"
    assert breaker.metrics().state == "closed"


def test_close_keeps_the_counts_of_a_closed_breaker() -> None:
    """A failing service is as near to a trip as before."""
    breaker, _ = make_breaker()
    fail(breaker, 2)
    assert breaker.close()
    assert breaker.metrics().consecutive == 2


def test_close_after_a_fatal_failure_must_be_explicit() -> None:
    """A rejected key stays rejected, so `close` must name such failures explicitly."""
    breaker, _ = make_breaker()
    outcome(breaker, BreakerOutcome.TRIP, cause="unauthenticated")
    assert not breaker.close()
    assert not breaker.allows_calls()
    assert breaker.close(even_if_fatal=True)
    assert breaker.allows_calls()


ACTIONS = st.sampled_from(
    ["success", "failure", "trip", "open", "closed", "even", "release", "close", "wait"]
)


@given(st.lists(ACTIONS, max_size=30))
def test_a_hold_does_not_change_the_counts(actions: list[str]) -> None:
    """A held breaker and one that is never held have the same state as soon as the hold ends.

    Both get the same outcomes of the calls that both admit.
    """
    held, clock = make_breaker(fail_max=2)
    free, _ = make_breaker(clock, fail_max=2)
    verdicts = {
        "success": BreakerOutcome.SUCCESS,
        "failure": BreakerOutcome.FAILURE,
        "trip": BreakerOutcome.TRIP,
    }
    holds = {"open": OPEN, "closed": CLOSED, "even": CLOSED._replace(even_if_fatal=True)}
    for action in actions:
        if action in verdicts:
            if held.allows_calls() and free.allows_calls():
                for breaker in (held, free):
                    outcome(breaker, verdicts[action], cause="quota_exhausted")
        elif action == "close":
            assert held.close(even_if_fatal=True)
            assert free.close(even_if_fatal=True)
        elif action == "wait":
            clock.advance(61.0)
        else:
            held.hold(holds.get(action))
        json.dumps(held.snapshot())
    held.hold(None)
    assert {**held.snapshot(), "since_s": 0} == {**free.snapshot(), "since_s": 0}
