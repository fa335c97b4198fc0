"""An operator's holds: kept open or closed for a time, or closed at once."""

from __future__ import annotations

import json
import math

import pytest
from breaker_kit import (
    changes,
    fail,
    half_open,
    let_in,
    make_breaker,
    opened,
    outcome,
    refused,
    succeed,
)
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen.circuitbreaker import BreakerMode, BreakerState, Hold
from resilient_imagen.reasons import BreakerOutcome

OPEN, CLOSED = Hold(opens=True, until=30.0), Hold(opens=False, until=30.0)


def test_held_open_rejects_all_calls_and_says_for_how_long() -> None:
    """The rejection has no cause, because nothing failed, and the time until the order ends."""
    breaker, clock = make_breaker()
    breaker.hold(OPEN)
    clock.pass_(10.0)
    rejection = refused(breaker)
    assert (rejection.state, rejection.cause) == (BreakerState.FORCED_OPEN, None)
    assert rejection.retry_after == 20.0
    assert breaker.blocked_until() == 30.0
    assert breaker.snapshot()["held"] == "open"
    breaker.hold(None)
    assert breaker.allows_calls()
    assert "held" not in breaker.snapshot()


def test_a_hold_whose_time_is_over_still_rejects_until_it_is_removed() -> None:
    """The end is the client's to announce; the wait is 0 then, never negative."""
    breaker, clock = make_breaker()
    breaker.hold(OPEN)
    clock.pass_(31.0)
    assert refused(breaker).retry_after == 0.0


def test_calls_in_flight_are_counted_while_it_is_held_open() -> None:
    """Afterwards the breaker is in the state that its outcomes lead to."""
    breaker, _ = make_breaker(fail_max=2)
    calls = [let_in(breaker) for _ in range(2)]
    breaker.hold(OPEN)
    for call in calls:
        call.settle(BreakerOutcome.FAILURE, cause="overloaded")
    breaker.hold(None)
    assert refused(breaker).cause == "overloaded"


def test_the_local_switch_has_precedence() -> None:
    """`force_open` outlasts an order, and has no known end."""
    breaker, _ = make_breaker()
    breaker.hold(CLOSED)
    breaker.force_open = True
    assert refused(breaker).retry_after is None
    assert breaker.blocked_until() == math.inf
    breaker.hold(None)
    assert not breaker.allows_calls()


def test_held_closed_admits_calls_that_the_breaker_would_reject() -> None:
    """It goes on deciding without effect, and takes over when the hold ends."""
    breaker, clock = opened()
    seen = changes(breaker)
    breaker.hold(CLOSED)
    assert breaker.metrics().state == "closed"
    assert breaker.snapshot()["held"] == "closed"
    assert breaker.snapshot()["shadow"]["state"] == "open"
    fail(breaker, 5)
    clock.pass_(20.0)
    breaker.hold(None)
    assert refused(breaker).retry_after == 40.0
    assert seen == [("open", "closed"), ("closed", "open")]


def test_a_probe_that_succeeds_while_held_closed_closes_it() -> None:
    """The first call after the open period is a probe without a probe's limits."""
    breaker, clock = opened()
    breaker.hold(CLOSED)
    clock.pass_(61.0)
    succeed(breaker)
    breaker.hold(None)
    assert breaker.metrics().state == "closed"


@pytest.mark.parametrize("even", [False, True])
def test_held_closed_stops_at_a_fatal_failure(even: bool) -> None:
    """A used-up quota opens it, before or during the hold, unless the order includes that."""
    breaker, _ = make_breaker(reset_max=600.0)
    breaker.hold(Hold(opens=False, until=30.0, even_if_fatal=even))
    outcome(breaker, BreakerOutcome.TRIP, cause="quota_exhausted")
    assert breaker.allows_calls() is even
    breaker.hold(None)
    assert refused(breaker).cause == "quota_exhausted"
    breaker.hold(Hold(opens=False, until=30.0, even_if_fatal=even))
    assert breaker.allows_calls() is even


def test_a_fatal_failure_that_lengthens_an_open_period_ends_the_held_state() -> None:
    """The state that callers see changes with the cause, although the breaker was open already."""
    breaker, _ = make_breaker(fail_max=1)
    late = let_in(breaker)
    breaker.hold(CLOSED)
    fail(breaker, cause="overloaded")
    assert breaker.allows_calls()
    late.settle(BreakerOutcome.TRIP, cause="unauthenticated")
    assert refused(breaker).cause == "unauthenticated"


def test_a_breaker_that_is_off_cannot_be_held_closed_but_open() -> None:
    """In mode off it never rejects by itself; an order still does."""
    breaker, _ = make_breaker(mode=BreakerMode.OFF)
    breaker.hold(CLOSED)
    assert breaker.allows_calls()
    breaker.hold(OPEN)
    assert not breaker.allows_calls()


def test_close_closes_now_and_it_may_trip_again() -> None:
    """Counts start from zero, as after a successful probe."""
    breaker, _ = opened()
    seen = changes(breaker)
    assert breaker.close()
    assert breaker.metrics().consecutive == 0
    fail(breaker, 3, cause="overloaded")
    assert refused(breaker).retry_after == 60.0
    assert seen == [("open", "closed"), ("closed", "open")]


def test_close_ends_the_round_of_probes() -> None:
    """A probe in flight has no vote any more."""
    breaker, _, probe = half_open()
    assert breaker.close()
    assert probe.settle(BreakerOutcome.FAILURE).counted == "stale"
    assert breaker.metrics().state == "closed"


def test_close_leaves_counts_of_a_closed_breaker_alone() -> None:
    """There is nothing to close, and a failing service stays as near to a trip as it was."""
    breaker, _ = make_breaker()
    fail(breaker, 2)
    assert breaker.close()
    assert breaker.metrics().consecutive == 2


def test_close_needs_a_word_for_a_fatal_failure() -> None:
    """A refused key is not cured by another request."""
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
def test_a_hold_never_changes_what_the_breaker_counts(actions: list[str]) -> None:
    """A held breaker and one that is never held agree again as soon as the hold ends.

    Both get the same outcomes, of the calls that both admit.
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
            clock.pass_(61.0)
        else:
            held.hold(holds.get(action))
        json.dumps(held.snapshot())
    held.hold(None)
    assert {**held.snapshot(), "since_s": 0} == {**free.snapshot(), "since_s": 0}
