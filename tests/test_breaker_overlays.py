"""What lies over the circuit: modes, force, other numbers; and what an operator sees."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from breaker_kit import (
    changes,
    fail,
    half_open,
    let_in,
    make_gate,
    opened,
    outcome,
    refused,
    succeed,
)

from resilient_imagen.breaker import (
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


def test_off_lets_everything_through_and_counts_nothing() -> None:
    """Whatever happens in mode off, no number changes."""
    gate, _ = make_gate(mode=BreakerMode.OFF)
    before = gate.metrics()
    permit = gate.acquire()
    assert isinstance(permit, Permit)
    gate.force_trip(cause="quota_exhausted")
    counted = {outcome(gate, verdict, retry_after=9.0).counted for verdict in BreakerOutcome}

    assert counted == {"ignored"}
    assert (permit.probe, permit.stale, permit.state) == (False, False, BreakerState.CLOSED)
    assert gate.try_acquire_early() is None
    assert gate.metrics() == before


def test_switching_off_and_on_keeps_the_opening() -> None:
    """Off lets through an open gate; on again it is as open as the clock says."""
    config = modes()
    gate, clock = opened()
    seen = changes(gate)
    gate.reconfigure(config[BreakerMode.OFF])
    assert gate.allows_calls()
    clock.pass_(20.0)
    gate.reconfigure(config[BreakerMode.ON])

    assert refused(gate).retry_after == 40.0
    assert seen == [("open", "closed"), ("closed", "open")]


def test_calls_in_flight_when_it_was_off_never_vote() -> None:
    """Neither those begun before it was off nor those begun meanwhile count once it is on again."""
    config = modes(fail_max=1)
    gate, _ = make_gate(fail_max=1)
    before = let_in(gate)
    gate.reconfigure(config[BreakerMode.OFF])
    while_off = let_in(gate)
    gate.reconfigure(config[BreakerMode.ON])

    assert before.settle(BreakerOutcome.FAILURE).counted == "stale"
    assert while_off.settle(BreakerOutcome.FAILURE).counted == "ignored"
    assert gate.allows_calls()


def test_switching_off_begins_a_generation_of_its_own() -> None:
    """Numbers of states are never used twice, so calls after it count and those before do not."""
    gate, clock = make_gate(fail_max=1)
    fail(gate)
    clock.pass_(60.0)
    succeed(gate)
    before = let_in(gate)
    gate.reconfigure(BreakerConfig(fail_max=1, mode=BreakerMode.OFF))
    gate.reconfigure(BreakerConfig(fail_max=1))
    after = let_in(gate)

    assert (before.generation, after.generation) == (3, 4)
    assert before.settle(BreakerOutcome.FAILURE).counted == "stale"
    assert after.settle(BreakerOutcome.FAILURE).transition == "closed_to_open"


def test_switching_off_frees_the_places_of_probes() -> None:
    """A probe in flight when it was switched off blocks nobody when it is on again."""
    config = modes()
    gate, _, probe = half_open()
    gate.reconfigure(config[BreakerMode.OFF])
    assert probe.settle(BreakerOutcome.FAILURE).counted == "ignored"
    gate.reconfigure(config[BreakerMode.ON])

    assert gate.metrics().state == "half_open"
    assert let_in(gate).settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"


# Shadow


def test_shadow_decides_reports_and_lets_through() -> None:
    """The whole life of a breaker happens in shadow, and callers meet a closed gate throughout."""
    gate, clock = make_gate(mode=BreakerMode.SHADOW)
    told: list[Transition] = []
    gate.subscribe(told.append, inline=True)
    settlements = [outcome(gate, BreakerOutcome.FAILURE, cause="overloaded") for _ in range(3)]
    assert (gate.allows_calls(), gate.blocked_until(), gate.try_acquire_early()) == (
        True,
        None,
        None,
    )
    assert gate.snapshot()["shadow"] == {"state": "open", "would_reject": 0}
    assert gate.snapshot()["state"] == "closed"
    succeed(gate, 5)
    assert gate.snapshot()["shadow"] == {"state": "open", "would_reject": 5}
    clock.pass_(60.0)
    probe = let_in(gate)
    beside = let_in(gate)
    assert (probe.probe, probe.state) == (False, BreakerState.CLOSED), "it gets no special care"
    assert beside.settle(BreakerOutcome.FAILURE).counted == "ignored", "it would have been rejected"
    assert probe.settle(BreakerOutcome.SUCCESS).counted == "success"

    assert [each.transition for each in settlements] == [None] * 3
    assert [each.metrics.retry_after for each in settlements] == [None] * 3, "nobody is rejected"
    assert [(each.from_state, each.to_state, each.shadow) for each in told] == [
        ("closed", "open", True),
        ("open", "half_open", True),
        ("half_open", "closed", True),
    ]
    assert (told[0].retry_after, told[0].cause, told[0].at) == (60.0, "overloaded", 0.0)
    assert told[0].metrics.state is BreakerState.CLOSED
    assert gate.snapshot()["shadow"] == {"state": "closed", "would_reject": 6}


def test_shadow_simulates_recovery_that_fails() -> None:
    """A failing shadow probe opens the shadow again, for longer."""
    gate, clock = make_gate(mode=BreakerMode.SHADOW)
    told: list[Transition] = []
    fail(gate, 3)
    clock.pass_(60.0)
    gate.subscribe(told.append, inline=True)
    fail(gate)

    assert [each.retry_after for each in told] == [None, 120.0]


def test_what_the_shadow_learned_holds_when_it_is_switched_on() -> None:
    """From shadow to on, an open shadow becomes an open gate, and listeners hear of it."""
    config = modes()
    gate, clock = make_gate(mode=BreakerMode.SHADOW)
    seen = changes(gate)
    fail(gate, 3)
    clock.pass_(15.0)
    gate.reconfigure(config[BreakerMode.ON])

    assert refused(gate).retry_after == 45.0
    assert seen == [("closed", "open")]


# Forced open


@pytest.mark.parametrize("mode", list(BreakerMode))
def test_forced_open_rejects_in_every_mode(mode: BreakerMode) -> None:
    """Force is an operator's word: it rejects everybody, without a time, until it is taken back."""
    gate, _ = make_gate(mode=mode)
    seen = changes(gate)
    assert gate.force_open is False
    gate.force_open = True
    gate.force_open = True
    rejection = refused(gate)

    assert gate.force_open
    assert gate.try_acquire_early() == rejection
    assert (rejection.state, rejection.retry_after, rejection.probing) == (
        BreakerState.FORCED_OPEN,
        None,
        False,
    )
    assert (gate.allows_calls(), gate.blocked_until()) == (False, math.inf)
    gate.force_open = False
    assert isinstance(gate.acquire(), Permit)
    assert seen == [("closed", "forced_open"), ("forced_open", "closed")]


def test_a_forced_rejection_is_not_blamed_on_an_old_failure() -> None:
    """Forced while open, the rejection carries no cause of the outage underneath."""
    gate, _ = opened()
    assert refused(gate).cause == "overloaded"
    told: list[Transition] = []
    gate.subscribe(told.append, inline=True)
    gate.force_open = True
    rejection = refused(gate)

    assert (rejection.cause, rejection.summary, rejection.origin) == (None, None, None)
    assert rejection.retry_after is None
    assert (rejection.metrics.open_for, rejection.metrics.retry_after) == (None, None)
    assert gate.snapshot()["retry_after"] is None
    assert [(each.cause, each.retry_after) for each in told] == [(None, None)]
    gate.force_open = False
    assert [(each.cause, each.retry_after) for each in told[1:]] == [("overloaded", 60.0)]


def test_requests_in_flight_still_count_under_force() -> None:
    """When force is taken back, the gate is in the state that the requests in flight proved."""
    gate, _ = make_gate(fail_max=2)
    first, second = let_in(gate), let_in(gate)
    gate.force_open = True
    seen = changes(gate)
    assert first.settle(BreakerOutcome.FAILURE).counted == "failure"
    settlement = second.settle(BreakerOutcome.FAILURE)
    assert (settlement.counted, settlement.transition) == ("failure", None)
    assert seen == []
    gate.force_open = False

    assert seen == [("forced_open", "open")]
    assert isinstance(gate.acquire(), Rejection)


# Other numbers


def test_other_numbers_keep_the_counts_and_hold_from_the_next_failure() -> None:
    """Two failures before, one after: the third in a row opens, or the second by a lower limit."""
    gate, _ = make_gate(fail_max=5, min_calls=100)
    fail(gate, 2)
    gate.reconfigure(BreakerConfig(fail_max=3, min_calls=100))
    assert gate.metrics().consecutive == 2
    assert gate.metrics().failure_threshold == 3
    fail(gate)
    assert gate.metrics().state is BreakerState.OPEN
    gate, _ = make_gate(fail_max=5, min_calls=100)
    fail(gate, 4)
    gate.reconfigure(BreakerConfig(fail_max=2, min_calls=100))
    assert gate.metrics().state is BreakerState.CLOSED
    fail(gate)
    assert gate.metrics().state is BreakerState.OPEN


def test_another_window_keeps_its_outcomes() -> None:
    """A window made longer does not forget, so an outage in progress is not missed."""
    gate, _ = make_gate(fail_max=100, min_calls=6, failure_rate=0.5, window=300.0)
    fail(gate, 5)
    gate.reconfigure(BreakerConfig(fail_max=100, min_calls=6, failure_rate=0.5, window=600.0))
    fail(gate)

    assert gate.metrics().state is BreakerState.OPEN


def test_other_open_times_do_not_move_the_present_opening() -> None:
    """An opening keeps its end; the next one follows the new numbers."""
    gate, clock = opened(reset_timeout=60.0)
    gate.reconfigure(BreakerConfig(reset_timeout=5.0, reset_max=9.0))
    assert gate.blocked_until() == 60.0
    clock.pass_(60.0)
    fail(gate)
    assert gate.metrics().open_for == 9.0


def test_fewer_places_close_a_round_that_has_enough_successes() -> None:
    """Two of three successes are enough once only two are asked for."""
    gate, clock = opened(half_open_calls=3)
    clock.pass_(60.0)
    succeed(gate, 2)
    gate.reconfigure(BreakerConfig(half_open_calls=2))
    assert gate.metrics().state is BreakerState.CLOSED
    gate, clock = opened(half_open_calls=3)
    clock.pass_(60.0)
    succeed(gate, 1)
    gate.reconfigure(BreakerConfig(half_open_calls=2))
    assert gate.metrics().state is BreakerState.HALF_OPEN
    succeed(gate, 1)
    assert gate.metrics().state is BreakerState.CLOSED


def test_more_places_let_more_probes_in() -> None:
    """A second place is there at once, and two successes are needed then."""
    gate, _, probe = half_open(half_open_calls=1)
    gate.reconfigure(BreakerConfig(half_open_calls=2))
    second = let_in(gate)

    assert probe.settle(BreakerOutcome.SUCCESS).transition is None
    assert second.settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"


def test_another_probe_deadline_holds_for_the_probe_in_flight() -> None:
    """A probe older than the new deadline has failed, now and not in the past."""
    gate, clock, _ = half_open(probe_deadline=61.0)
    clock.pass_(30.0)
    gate.reconfigure(BreakerConfig(probe_deadline=10.0))

    assert gate.metrics().state is BreakerState.OPEN
    assert gate.blocked_until() == clock.now + 120.0


# Watching


def test_snapshot_of_a_fresh_gate() -> None:
    """A gate that nobody used has nothing to report, and says so completely."""
    gate, clock = make_gate()
    clock.pass_(12.5)

    assert gate.snapshot() == {
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


def test_snapshot_of_an_open_and_of_a_half_open_gate() -> None:
    """It shows since when, why, what was counted and when to come back."""
    gate, clock = make_gate(min_calls=100)
    succeed(gate)
    fail(gate, 3, cause="overloaded")
    clock.pass_(25.0)
    snapshot = gate.snapshot()

    assert snapshot["state"] == "open"
    assert (snapshot["since_s"], snapshot["retry_after"]) == (25.0, 35.0)
    assert (snapshot["why"], snapshot["openings_in_a_row"]) == ("overloaded", 1)
    assert snapshot["window"] == {
        "calls": 4,
        "failures": 3,
        "failure_rate": 0.75,
        "seconds": 300.0,
    }
    clock.pass_(35.0)
    let_in(gate)
    clock.pass_(1.0)
    snapshot = gate.snapshot()
    assert snapshot["state"] == "half_open"
    assert (snapshot["since_s"], snapshot["retry_after"]) == (1.0, 60.0)
    assert (snapshot["why"], snapshot["probes_in_flight"]) == ("overloaded", 1)


@pytest.mark.parametrize("mode", list(BreakerMode))
@pytest.mark.parametrize("forced", [True, False])
def test_every_snapshot_is_json(mode: BreakerMode, forced: bool) -> None:
    """In every mode and state it survives strict JSON unchanged, infinite times included."""
    gate, clock = make_gate(mode=mode)
    gate.force_open = forced
    shots = [gate.snapshot()]
    gate.force_trip(cause="quota_exhausted")
    shots.append(gate.snapshot())
    clock.pass_(700.0)
    gate.acquire()
    shots.append(gate.snapshot())

    assert [json.loads(json.dumps(each, allow_nan=False)) for each in shots] == shots


def test_looking_takes_no_place() -> None:
    """Asking whether it is usable, for numbers or for a snapshot leaves the probe to a caller."""
    gate, clock = opened()
    clock.pass_(60.0)
    for _ in range(10):
        assert gate.allows_calls()
        gate.metrics()
        gate.snapshot()

    assert let_in(gate).probe
