"""Overlays of the state: modes, forced states, reconfiguration, and snapshots."""

from __future__ import annotations

import json
import math
from typing import Any

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

from resilient_imagen.circuitbreaker import (
    BreakerConfig,
    BreakerMode,
    BreakerState,
    Permit,
    Rejection,
    Transition,
)
from resilient_imagen.reasons import BreakerOutcome


def modes(**numbers: Any) -> dict[BreakerMode, BreakerConfig]:
    return {mode: BreakerConfig(mode=mode, **numbers) for mode in BreakerMode}


# Off


def test_mode_off_admits_all_calls_and_counts_nothing() -> None:
    """In mode off, all calls pass and no count changes."""
    breaker, _ = make_breaker(mode=BreakerMode.OFF)
    before = breaker.metrics()
    permit = breaker.acquire()
    assert isinstance(permit, Permit)
    breaker.force_trip(cause="quota_exhausted")
    counted = {outcome(breaker, verdict, retry_after=9.0).counted for verdict in BreakerOutcome}

    assert counted == {"ignored"}
    assert (permit.probe, permit.stale, permit.state) == (False, False, BreakerState.CLOSED)
    assert breaker.try_acquire_early() is None
    assert breaker.metrics() == before


def test_switching_off_and_on_keeps_the_opening() -> None:
    """In mode off, calls pass an open breaker; in mode on the open period continues."""
    config = modes()
    breaker, clock = opened()
    seen = changes(breaker)
    breaker.reconfigure(config[BreakerMode.OFF])
    assert breaker.allows_calls()
    clock.advance(20.0)
    breaker.reconfigure(config[BreakerMode.ON])

    assert refused(breaker).retry_after == 40.0
    assert seen == [("open", "closed"), ("closed", "open")]


def test_calls_in_flight_when_it_was_off_never_vote() -> None:
    """Calls that began before or during mode off do not vote after it is on again."""
    config = modes(fail_max=1)
    breaker, _ = make_breaker(fail_max=1)
    before = send_call(breaker)
    breaker.reconfigure(config[BreakerMode.OFF])
    while_off = send_call(breaker)
    breaker.reconfigure(config[BreakerMode.ON])

    assert before.settle(BreakerOutcome.FAILURE).counted == "stale"
    assert while_off.settle(BreakerOutcome.FAILURE).counted == "ignored"
    assert breaker.allows_calls()


def test_switching_off_begins_a_new_generation() -> None:
    """Mode off starts a new generation, so only calls after it count."""
    breaker, clock = make_breaker(fail_max=1)
    fail(breaker)
    clock.advance(60.0)
    succeed(breaker)
    before = send_call(breaker)
    breaker.reconfigure(BreakerConfig(fail_max=1, mode=BreakerMode.OFF))
    breaker.reconfigure(BreakerConfig(fail_max=1))
    after = send_call(breaker)

    assert (before.generation, after.generation) == (3, 4)
    assert before.settle(BreakerOutcome.FAILURE).counted == "stale"
    assert after.settle(BreakerOutcome.FAILURE).transition == "closed_to_open"


def test_switching_off_frees_the_places_of_probes() -> None:
    """A probe in flight when the breaker is switched off does not block a place afterwards."""
    config = modes()
    breaker, _, probe = half_open()
    breaker.reconfigure(config[BreakerMode.OFF])
    assert probe.settle(BreakerOutcome.FAILURE).counted == "ignored"
    breaker.reconfigure(config[BreakerMode.ON])

    assert breaker.metrics().state == "half_open"
    assert send_call(breaker).settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"


# Shadow


def test_shadow_mode_reports_transitions_and_rejects_no_call() -> None:
    """In shadow mode the breaker changes state and reports it, but rejects no call."""
    breaker, clock = make_breaker(mode=BreakerMode.SHADOW)
    transitions: list[Transition] = []
    breaker.subscribe(transitions.append, inline=True)
    settlements = [outcome(breaker, BreakerOutcome.FAILURE, cause="overloaded") for _ in range(3)]
    assert (breaker.allows_calls(), breaker.blocked_until(), breaker.try_acquire_early()) == (
        True,
        None,
        None,
    )
    assert breaker.snapshot()["shadow"] == {"state": "open", "would_reject": 0}
    assert breaker.snapshot()["state"] == "closed"
    succeed(breaker, 5)
    assert breaker.snapshot()["shadow"] == {"state": "open", "would_reject": 5}
    clock.advance(60.0)
    probe = send_call(breaker)
    beside = send_call(breaker)
    assert (probe.probe, probe.state) == (False, BreakerState.CLOSED), "it gets no special care"
    assert beside.settle(BreakerOutcome.FAILURE).counted == "ignored", "it would have been rejected"
    assert probe.settle(BreakerOutcome.SUCCESS).counted == "success"

    assert [each.transition for each in settlements] == [None] * 3
    assert [each.metrics.retry_after for each in settlements] == [None] * 3, "no call is rejected"
    assert [(each.from_state, each.to_state, each.shadow) for each in transitions] == [
        ("closed", "open", True),
        ("open", "half_open", True),
        ("half_open", "closed", True),
    ]
    assert (transitions[0].retry_after, transitions[0].cause, transitions[0].at) == (
        60.0,
        "overloaded",
        0.0,
    )
    assert transitions[0].metrics.state is BreakerState.CLOSED
    assert breaker.snapshot()["shadow"] == {"state": "closed", "would_reject": 6}


def test_shadow_simulates_recovery_that_fails() -> None:
    """A failed probe opens a shadow breaker again, by the probe's duration."""
    breaker, clock = make_breaker(mode=BreakerMode.SHADOW)
    transitions: list[Transition] = []
    fail(breaker, 3)
    clock.advance(60.0)
    breaker.subscribe(transitions.append, inline=True)
    probe = send_call(breaker)
    clock.advance(20.0)
    probe.settle(BreakerOutcome.FAILURE)

    assert [each.retry_after for each in transitions] == [None, 100.0]


def test_the_state_of_shadow_mode_applies_when_it_is_switched_on() -> None:
    """Switching from shadow to on keeps the open state and reports it to listeners."""
    config = modes()
    breaker, clock = make_breaker(mode=BreakerMode.SHADOW)
    seen = changes(breaker)
    fail(breaker, 3)
    clock.advance(15.0)
    breaker.reconfigure(config[BreakerMode.ON])

    assert refused(breaker).retry_after == 45.0
    assert seen == [("closed", "open")]


# Forced open


@pytest.mark.parametrize("mode", list(BreakerMode))
def test_forced_open_rejects_in_every_mode(mode: BreakerMode) -> None:
    """A forced-open breaker rejects every call without retry_after until it is released."""
    breaker, _ = make_breaker(mode=mode)
    seen = changes(breaker)
    assert breaker.force_open is False
    breaker.force_open = True
    breaker.force_open = True
    rejection = refused(breaker)

    assert breaker.force_open
    assert breaker.try_acquire_early() == rejection
    assert (rejection.state, rejection.retry_after, rejection.probing) == (
        BreakerState.FORCED_OPEN,
        None,
        False,
    )
    assert (breaker.allows_calls(), breaker.blocked_until()) == (False, math.inf)
    breaker.force_open = False
    assert isinstance(breaker.acquire(), Permit)
    assert seen == [("closed", "forced_open"), ("forced_open", "closed")]


def test_a_forced_rejection_has_no_cause_of_an_earlier_failure() -> None:
    """A rejection by a forced-open breaker has no cause of an earlier outage."""
    breaker, _ = opened()
    assert refused(breaker).cause == "overloaded"
    transitions: list[Transition] = []
    breaker.subscribe(transitions.append, inline=True)
    breaker.force_open = True
    rejection = refused(breaker)

    assert (rejection.cause, rejection.summary, rejection.origin) == (None, None, None)
    assert rejection.retry_after is None
    assert (rejection.metrics.open_for, rejection.metrics.retry_after) == (None, None)
    assert breaker.snapshot()["retry_after"] is None
    assert [(each.cause, each.retry_after) for each in transitions] == [(None, None)]
    breaker.force_open = False
    assert [(each.cause, each.retry_after) for each in transitions[1:]] == [("overloaded", 60.0)]


def test_requests_in_flight_still_count_under_force() -> None:
    """Outcomes during forced open determine the state after its release."""
    breaker, _ = make_breaker(fail_max=2)
    first, second = send_call(breaker), send_call(breaker)
    breaker.force_open = True
    seen = changes(breaker)
    assert first.settle(BreakerOutcome.FAILURE).counted == "failure"
    settlement = second.settle(BreakerOutcome.FAILURE)
    assert (settlement.counted, settlement.transition) == ("failure", None)
    assert seen == []
    breaker.force_open = False

    assert seen == [("forced_open", "open")]
    assert isinstance(breaker.acquire(), Rejection)


# Other numbers


def test_reconfiguring_keeps_the_counts() -> None:
    """After a reconfiguration the counts stay, and the new limit applies to the next failure."""
    breaker, _ = make_breaker(fail_max=5, min_calls=100)
    fail(breaker, 2)
    breaker.reconfigure(BreakerConfig(fail_max=3, min_calls=100))
    assert breaker.metrics().consecutive == 2
    assert breaker.metrics().failure_threshold == 3
    fail(breaker)
    assert breaker.metrics().state is BreakerState.OPEN
    breaker, _ = make_breaker(fail_max=5, min_calls=100)
    fail(breaker, 4)
    breaker.reconfigure(BreakerConfig(fail_max=2, min_calls=100))
    assert breaker.metrics().state is BreakerState.CLOSED
    fail(breaker)
    assert breaker.metrics().state is BreakerState.OPEN


def test_another_window_keeps_its_outcomes() -> None:
    """A longer window keeps its outcomes, so an outage in progress is still detected."""
    breaker, _ = make_breaker(fail_max=100, min_calls=6, failure_rate=0.5, window=300.0)
    fail(breaker, 5)
    breaker.reconfigure(BreakerConfig(fail_max=100, min_calls=6, failure_rate=0.5, window=600.0))
    fail(breaker)

    assert breaker.metrics().state is BreakerState.OPEN


def test_other_open_times_do_not_move_the_present_opening() -> None:
    """An open period keeps its end; the next one has the new length."""
    breaker, clock = opened(reset_timeout=60.0)
    breaker.reconfigure(BreakerConfig(reset_timeout=5.0, reset_max=9.0))
    assert breaker.blocked_until() == 60.0
    clock.advance(60.0)
    fail(breaker)
    assert breaker.metrics().open_for == 5.0


def test_fewer_places_close_a_round_that_has_enough_successes() -> None:
    """Two of three successes close the circuit once only two are required."""
    breaker, clock = opened(half_open_calls=3)
    clock.advance(60.0)
    succeed(breaker, 2)
    breaker.reconfigure(BreakerConfig(half_open_calls=2))
    assert breaker.metrics().state is BreakerState.CLOSED
    breaker, clock = opened(half_open_calls=3)
    clock.advance(60.0)
    succeed(breaker, 1)
    breaker.reconfigure(BreakerConfig(half_open_calls=2))
    assert breaker.metrics().state is BreakerState.HALF_OPEN
    succeed(breaker, 1)
    assert breaker.metrics().state is BreakerState.CLOSED


def test_more_places_let_more_probes_in() -> None:
    """With a second place, a second probe is admitted at once and two successes close."""
    breaker, _, probe = half_open(half_open_calls=1)
    breaker.reconfigure(BreakerConfig(half_open_calls=2))
    second = send_call(breaker)

    assert probe.settle(BreakerOutcome.SUCCESS).transition is None
    assert second.settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"


def test_a_changed_probe_deadline_applies_to_the_probe_in_flight() -> None:
    """A probe older than a new, shorter deadline fails at the time of the change."""
    breaker, clock, _ = half_open(probe_deadline=61.0)
    clock.advance(30.0)
    breaker.reconfigure(BreakerConfig(probe_deadline=10.0))

    assert breaker.metrics().state is BreakerState.OPEN
    assert breaker.blocked_until() == clock.now + 5 * 30.0


# Watching


def test_snapshot_of_an_unused_breaker() -> None:
    """The snapshot of an unused breaker is complete, with empty values."""
    breaker, clock = make_breaker()
    clock.advance(12.5)

    assert breaker.snapshot() == {
        "name": "google:pro",
        "state": "closed",
        "mode": "on",
        "since_s": 12.5,
        "why": None,
        "retry_after": None,
        "window": {"calls": 0, "failures": 0, "failure_rate": 0.0, "seconds": 300.0},
        "consecutive": 0,
        "fail_max": 3,
        "probes_in_flight": 0,
        "openings_in_a_row": 0,
        "shadow": {"state": None, "would_reject": 0},
    }


def test_snapshot_of_an_open_and_of_a_half_open_breaker() -> None:
    """The snapshot has the time and cause of the opening, the counts and retry_after."""
    breaker, clock = make_breaker(min_calls=100)
    succeed(breaker)
    fail(breaker, 3, cause="overloaded")
    clock.advance(25.0)
    snapshot = breaker.snapshot()

    assert snapshot["state"] == "open"
    assert (snapshot["since_s"], snapshot["retry_after"]) == (25.0, 35.0)
    assert (snapshot["why"], snapshot["openings_in_a_row"]) == ("overloaded", 1)
    assert snapshot["window"] == {
        "calls": 4,
        "failures": 3,
        "failure_rate": 0.75,
        "seconds": 300.0,
    }
    clock.advance(35.0)
    send_call(breaker)
    clock.advance(1.0)
    snapshot = breaker.snapshot()
    assert snapshot["state"] == "half_open"
    assert (snapshot["since_s"], snapshot["retry_after"]) == (1.0, 60.0)
    assert (snapshot["why"], snapshot["probes_in_flight"]) == ("overloaded", 1)


@pytest.mark.parametrize("mode", list(BreakerMode))
@pytest.mark.parametrize("forced", [True, False])
def test_every_snapshot_is_json(mode: BreakerMode, forced: bool) -> None:
    """Every snapshot, with infinite times too, survives strict JSON unchanged."""
    breaker, clock = make_breaker(mode=mode)
    breaker.force_open = forced
    shots = [breaker.snapshot()]
    breaker.force_trip(cause="quota_exhausted")
    shots.append(breaker.snapshot())
    clock.advance(700.0)
    breaker.acquire()
    shots.append(breaker.snapshot())

    assert [json.loads(json.dumps(each, allow_nan=False)) for each in shots] == shots


def test_reading_the_state_reserves_no_place() -> None:
    """Reading `allows_calls`, metrics or a snapshot does not take the probe's place."""
    breaker, clock = opened()
    clock.advance(60.0)
    for _ in range(10):
        assert breaker.allows_calls()
        breaker.metrics()
        breaker.snapshot()

    assert send_call(breaker).probe
