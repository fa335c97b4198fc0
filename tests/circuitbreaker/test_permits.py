"""Permits: opening, open periods and closing of a breaker on a manual clock."""

from __future__ import annotations

import math
import threading
from functools import partial

import pytest
from breaker_kit import (
    ManualClock,
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
    BreakerMetrics,
    BreakerMode,
    BreakerState,
    CircuitBreaker,
    Permit,
    Rejection,
    Transition,
)
from resilient_imagen.reasons import BreakerOutcome

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
THROTTLED, TRIP = BreakerOutcome.THROTTLED, BreakerOutcome.TRIP


# Closed


def test_a_breaker_that_another_thread_is_opening_gives_no_vote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the change and its publication, no permit may vote in the open state."""
    breaker, _ = make_breaker(fail_max=1)
    publish = breaker._publish_state
    entered, leave = threading.Event(), threading.Event()

    def publish_late() -> None:
        entered.set()
        assert leave.wait(timeout=30)
        publish()

    monkeypatch.setattr(breaker, "_publish_state", publish_late)
    opening = threading.Thread(target=partial(breaker.force_trip, cause="overloaded"))
    opening.start()
    assert entered.wait(timeout=30)
    acquired: list[Permit | Rejection] = []
    acquiring = threading.Thread(target=lambda: acquired.append(breaker.acquire()))
    acquiring.start()
    leave.set()
    for thread in (opening, acquiring):
        thread.join(timeout=30)
    assert isinstance(acquired[0], Rejection)


def test_a_permit_acquired_while_the_breaker_opened_is_stale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If it is opened during the acquisition, the permit is one of the state before."""
    breaker, _ = make_breaker(fail_max=1)
    mode = type(breaker)._mode

    def read_mode(self: CircuitBreaker) -> BreakerMode:
        monkeypatch.undo()
        breaker.force_trip(cause="overloaded")  # as another thread may, at this moment
        return BreakerMode.ON

    monkeypatch.setattr(CircuitBreaker, "_mode", property(read_mode))
    answer = breaker.acquire()
    assert type(breaker)._mode is mode
    assert isinstance(answer, Rejection) or answer.stale
    if isinstance(answer, Permit):
        assert answer.settle(BreakerOutcome.FAILURE).counted == "stale"
    assert breaker.metrics().state is OPEN


def test_a_closed_breaker_admits_all_calls() -> None:
    """In the closed state, the check before queueing passes, and the permit is not a probe."""
    breaker, _ = make_breaker()
    permit = breaker.acquire()

    assert breaker.try_acquire_early() is None
    assert isinstance(permit, Permit)
    assert (permit.probe, permit.generation, permit.state) == (False, 0, CLOSED)
    assert (breaker.allows_calls(), breaker.blocked_until()) == (True, None)


def test_failures_in_a_row_open_it_at_the_last_of_them() -> None:
    """The third consecutive failure opens the breaker, and its settlement shows that."""
    breaker, _ = make_breaker(fail_max=3, min_calls=100)
    settlements = [outcome(breaker, BreakerOutcome.FAILURE) for _ in range(3)]

    assert [each.counted for each in settlements] == ["failure"] * 3
    assert [each.transition for each in settlements] == [None, None, "closed_to_open"]
    assert settlements[-1].metrics == BreakerMetrics(
        state=OPEN,
        failure_rate=1.0,
        window_calls=3,
        consecutive=3,
        failure_threshold=3,
        open_for=60.0,
        retry_after=60.0,
    )


def test_a_success_resets_the_consecutive_failures() -> None:
    """Two failures, a success and two failures are not three consecutive failures."""
    breaker, _ = make_breaker(fail_max=3, min_calls=100)
    fail(breaker, 2)
    succeed(breaker)
    fail(breaker, 2)

    assert breaker.metrics().state is CLOSED
    fail(breaker)
    assert breaker.metrics().state is OPEN


def test_alternating_failures_open_it_by_the_failure_rate() -> None:
    """A failure rate of one half opens at the first failure with enough calls in the window."""
    breaker, _ = make_breaker(fail_max=3, failure_rate=0.5, min_calls=6)
    for _ in range(3):
        succeed(breaker)
        assert breaker.metrics().state is CLOSED
        fail(breaker)

    assert breaker.metrics().state is OPEN


def test_a_success_never_opens_it() -> None:
    """A success that fills the window to its minimum does not open; the next failure does."""
    breaker, _ = make_breaker(fail_max=100, failure_rate=0.5, min_calls=6)
    fail(breaker, 5)
    succeed(breaker)
    assert breaker.metrics().state is CLOSED
    fail(breaker)
    assert breaker.metrics().state is OPEN


def test_old_outcomes_leave_the_window() -> None:
    """Failures of ten minutes ago do not count in the failure rate."""
    breaker, clock = make_breaker(fail_max=100, failure_rate=0.5, min_calls=6, window=300.0)
    fail(breaker, 5)
    clock.advance(300.0)
    fail(breaker, 5)

    assert breaker.metrics().state is CLOSED
    assert breaker.metrics().window_calls == 5


def test_throttling_without_a_hint_counts_in_a_row_only() -> None:
    """Three consecutive 429 open the breaker; none of them counts in the window."""
    breaker, _ = make_breaker(fail_max=3)
    settlements = [outcome(breaker, BreakerOutcome.THROTTLED) for _ in range(3)]

    assert [each.counted for each in settlements] == ["throttled"] * 3
    assert settlements[-1].transition == "closed_to_open"
    assert settlements[-1].metrics.window_calls == 0
    assert settlements[-1].metrics.retry_after == 60.0


def test_throttling_never_opens_it_by_the_failure_rate() -> None:
    """A 429 does not open the breaker even if ageing has raised the failure rate too high."""
    breaker, clock = make_breaker(fail_max=100, failure_rate=0.9, min_calls=2, window=60.0)
    succeed(breaker, 10)
    clock.advance(30.0)
    fail(breaker, 5)
    clock.advance(40.0)  # the successes are too old now: 5 of 5 failed
    assert breaker.metrics().failure_rate == 1.0
    outcome(breaker, BreakerOutcome.THROTTLED)
    assert breaker.metrics().state is CLOSED
    fail(breaker)
    assert breaker.metrics().state is OPEN


@pytest.mark.parametrize(("hint", "length"), [(33.0, 33.0), (0.25, 0.25), (5000.0, 600.0)])
def test_throttling_with_a_hint_opens_for_exactly_that_long(hint: float, length: float) -> None:
    """One 429 with a hint opens at once, without jitter, for at most reset_max."""
    breaker, clock = make_breaker(jitter=1.0)
    settlement = outcome(breaker, BreakerOutcome.THROTTLED, retry_after=hint)

    assert (settlement.counted, settlement.transition) == ("throttled", "closed_to_open")
    assert settlement.metrics.open_for == length
    assert breaker.blocked_until() == clock.now + length
    assert (settlement.metrics.window_calls, settlement.metrics.consecutive) == (0, 0)


def test_a_hints_open_period_ends_without_a_probe() -> None:
    """After a hint the breaker closes exactly at its end, without a probe."""
    breaker, clock = make_breaker(jitter=1.0)
    seen = changes(breaker)
    outcome(breaker, THROTTLED, retry_after=2.0)
    clock.now = math.nextafter(2.0, 0.0)
    assert (refused(breaker).state, refused(breaker).probing) == (OPEN, False)
    assert breaker.snapshot()["openings_in_a_row"] == 1
    clock.now = 2.0

    assert (breaker.allows_calls(), breaker.blocked_until(), breaker.try_acquire_early()) == (
        True,
        None,
        None,
    )
    assert [send_call(breaker).probe for _ in range(5)] == [False] * 5
    assert seen == [("closed", "open"), ("open", "closed")]
    assert breaker.snapshot()["openings_in_a_row"] == 0
    assert breaker.snapshot()["why"] is None


def test_the_closing_after_a_hint_has_the_hints_end_as_its_time() -> None:
    """The closing after a hint has the time of the hint's end, however late it is detected."""
    breaker, clock = make_breaker()
    transitions: list[Transition] = []
    outcome(breaker, THROTTLED, retry_after=2.0, cause="rate_limited")
    breaker.subscribe(transitions.append, inline=True)
    clock.advance(1000.0)
    assert breaker.snapshot()["since_s"] == 998.0
    (closed,) = transitions

    assert (closed.from_state, closed.to_state, closed.at) == (OPEN, CLOSED, 2.0)
    assert (closed.cause, closed.retry_after, closed.shadow) == (None, None, False)


def test_a_hint_does_not_change_the_counts() -> None:
    """A hint between failures changes neither the consecutive count nor the window."""
    breaker, clock = make_breaker(fail_max=3, min_calls=100)
    succeed(breaker)
    fail(breaker, 2)
    outcome(breaker, THROTTLED, retry_after=2.0)
    clock.advance(2.0)
    numbers = breaker.metrics()
    assert (numbers.state, numbers.consecutive, numbers.window_calls) == (CLOSED, 2, 3)
    fail(breaker)

    assert breaker.metrics().state is OPEN
    assert breaker.metrics().open_for == 60.0


@pytest.mark.parametrize("hint", [0.0, -1.0, math.nan])
def test_a_hint_of_no_seconds_is_ignored(hint: float) -> None:
    """A 429 with a hint of zero or less counts as one without a hint."""
    breaker, _ = make_breaker(fail_max=2)
    outcome(breaker, BreakerOutcome.THROTTLED, retry_after=hint)
    assert breaker.metrics().state is CLOSED
    outcome(breaker, BreakerOutcome.THROTTLED, retry_after=hint)
    assert breaker.metrics().open_for == 60.0


@pytest.mark.parametrize(
    ("hint", "length"), [(None, 600.0), (30.0, 600.0), (7200.0, 7200.0), (1e6, 86_400.0)]
)
def test_a_trip_opens_at_once_for_long(hint: float | None, length: float) -> None:
    """One exhausted quota opens for reset_max, or for a longer hint of up to a day."""
    breaker, _ = make_breaker()
    settlement = outcome(breaker, BreakerOutcome.TRIP, retry_after=hint, cause="quota_exhausted")

    assert (settlement.counted, settlement.transition) == ("failure", "closed_to_open")
    assert settlement.metrics.open_for == length
    assert (settlement.metrics.window_calls, settlement.metrics.consecutive) == (1, 1)


def test_a_failure_with_a_hint_opens_for_at_least_that_long() -> None:
    """A hint of the failure that opens lengthens the open period, up to reset_max."""
    breaker, _ = make_breaker(fail_max=2)
    fail(breaker, retry_after=500.0)
    assert breaker.metrics().state is CLOSED
    fail(breaker, retry_after=200.0)
    assert breaker.metrics().open_for == 200.0


def test_neutral_counts_nowhere() -> None:
    """Neutral outcomes change no count."""
    breaker, _ = make_breaker()
    fail(breaker, 2)
    before = breaker.metrics()
    counted = [outcome(breaker, BreakerOutcome.NEUTRAL).counted for _ in range(20)]

    assert counted == ["ignored"] * 20
    assert breaker.metrics() == before


# Open


def test_a_rejection_has_all_values() -> None:
    """A rejection has all values that errors, spans and log lines need."""
    breaker, clock = make_breaker(fail_max=2)
    fail(breaker, cause="timeout", summary="timed out", origin="span one")
    fail(breaker, cause="overloaded", summary="503 UNAVAILABLE", origin="span two")
    clock.advance(20.0)

    assert refused(breaker) == Rejection(
        name="google:pro",
        state=OPEN,
        retry_after=40.0,
        probing=False,
        cause="overloaded",
        summary="503 UNAVAILABLE",
        origin="span two",
        metrics=breaker.metrics(),
    )
    assert breaker.try_acquire_early() == refused(breaker)


def test_it_rejects_until_the_end_of_the_open_period() -> None:
    """Just before the end of the open period all calls are rejected; at the end one probes."""
    breaker, clock = opened(reset_timeout=60.0)
    clock.now = math.nextafter(60.0, 0.0)
    assert not breaker.allows_calls()
    assert refused(breaker).retry_after == 60.0 - clock.now
    clock.now = 60.0
    assert (breaker.allows_calls(), breaker.blocked_until()) == (True, None)
    assert send_call(breaker).probe


def test_reading_a_due_breaker_does_not_start_a_round() -> None:
    """Reading the state after the open period does not start a half-open round."""
    breaker, clock = opened()
    seen = changes(breaker)
    clock.advance(100_000.0)

    assert breaker.allows_calls()
    assert breaker.metrics().state is OPEN
    assert breaker.metrics().retry_after is None
    assert seen == []


@pytest.mark.parametrize(
    ("verdict", "hint"),
    [
        *((verdict, 999.0) for verdict in BreakerOutcome if verdict not in {TRIP, THROTTLED}),
        (THROTTLED, None),
        (THROTTLED, 29.0),
    ],
)
def test_late_outcomes_do_not_change_the_open_period(
    verdict: BreakerOutcome, hint: float | None
) -> None:
    """Outcomes of requests begun before the opening are stale and change no number."""
    breaker, clock = make_breaker(fail_max=2)
    stragglers = [send_call(breaker) for _ in range(10)]
    fail(breaker, 2)
    before = breaker.metrics()
    clock.advance(30.0)
    settlements = [each.settle(verdict, retry_after=hint) for each in stragglers]

    assert {each.counted for each in settlements} == {"stale"}
    assert {each.transition for each in settlements} == {None}
    assert breaker.metrics() == before._replace(retry_after=30.0)


@pytest.mark.parametrize(
    ("verdict", "hint", "seconds"),
    [(THROTTLED, 45.0, 45.0), (THROTTLED, 5000.0, 600.0), (TRIP, None, 600.0), (TRIP, 7e3, 7e3)],
)
def test_a_late_hint_or_fatal_failure_extends_the_open_period(
    verdict: BreakerOutcome, hint: float | None, seconds: float
) -> None:
    """A late hint or fatal failure sets a later end, with its own cause, and is still stale."""
    breaker, clock = make_breaker(fail_max=2)
    late_call = send_call(breaker)
    fail(breaker, 2, cause="overloaded", summary="503 UNAVAILABLE")
    before = breaker.metrics()
    seen = changes(breaker)
    clock.advance(30.0)
    settlement = late_call.settle(verdict, cause="the later one", summary="429", retry_after=hint)

    assert (settlement.counted, settlement.transition) == ("stale", None)
    assert settlement.metrics == before._replace(open_for=30.0 + seconds, retry_after=seconds)
    assert (refused(breaker).cause, refused(breaker).summary) == ("the later one", "429")
    assert breaker.snapshot()["why"] == "the later one"
    assert seen == []
    clock.advance(seconds)
    assert send_call(breaker).probe, "the failures that opened it still ask for a probe"


def test_the_longest_of_several_hints_applies() -> None:
    """In any order, the circuit closes when the longest hint ends."""
    for hints in ([2.0, 30.0, 9.0], [30.0, 9.0, 2.0], [9.0, 2.0, 30.0]):
        breaker, clock = make_breaker()
        for permit, hint in zip([send_call(breaker) for _ in hints], hints, strict=True):
            permit.settle(THROTTLED, retry_after=hint)
        assert breaker.blocked_until() == 30.0
        clock.advance(30.0)
        assert breaker.metrics().state is CLOSED


@pytest.mark.parametrize("at", [0.0, 1.0])
def test_a_fatal_failure_during_a_hint_requires_a_probe(at: float) -> None:
    """After the hint alone the circuit would have closed.

    An exhausted quota needs a successful probe.
    """
    breaker, clock = make_breaker(reset_max=600.0)
    late_call = send_call(breaker)
    outcome(breaker, THROTTLED, retry_after=600.0, cause="rate_limited")
    clock.advance(at)
    late_call.settle(TRIP, cause="quota_exhausted")
    clock.advance(600.0)

    assert breaker.metrics().state is OPEN
    assert send_call(breaker).probe


def test_a_hint_after_a_fatal_failure_still_requires_a_probe() -> None:
    """A hint may extend an open period that needs a probe, but does not replace the probe."""
    breaker, clock = make_breaker(reset_max=600.0)
    late_call = send_call(breaker)
    breaker.open_for(10.0, cause="quota_exhausted", summary=None)
    late_call.settle(THROTTLED, retry_after=60.0)
    clock.advance(60.0)

    assert send_call(breaker).probe


@pytest.mark.parametrize(("verdict", "hint"), [(THROTTLED, 30.0), (TRIP, 7200.0)])
def test_a_late_outcome_opens_no_later_state(verdict: BreakerOutcome, hint: float) -> None:
    """An outcome from before the opening changes neither a half-open nor a closed state."""
    breaker, clock = make_breaker(fail_max=2, half_open_calls=2)
    first, second = send_call(breaker), send_call(breaker)
    fail(breaker, 2)
    clock.advance(60.0)
    succeed(breaker)
    assert first.settle(verdict, retry_after=hint).counted == "stale"
    assert breaker.metrics().state is HALF_OPEN
    succeed(breaker)
    assert second.settle(verdict, retry_after=hint).counted == "stale"
    assert breaker.metrics().state is CLOSED


def test_a_sibling_trips_a_closed_breaker() -> None:
    """A trip by another route opens this breaker at once and is the cause of rejections."""
    breaker, _ = make_breaker()
    breaker.force_trip(cause="quota_exhausted", summary="402 billing", origin="span")
    rejection = refused(breaker)

    assert (rejection.cause, rejection.summary, rejection.origin) == (
        "quota_exhausted",
        "402 billing",
        "span",
    )
    assert rejection.retry_after == 600.0


@pytest.mark.parametrize(("hint", "length"), [(7200.0, 7200.0), (60.0, 600.0), (math.nan, 600.0)])
def test_a_siblings_hint_may_exceed_reset_max(hint: float, length: float) -> None:
    """A sibling's hint sets the open period only if it is longer than reset_max."""
    breaker, _ = make_breaker()
    breaker.force_trip(cause="quota_exhausted", retry_after=hint)

    assert breaker.blocked_until() == length


def test_a_sibling_lengthens_an_opening_but_never_shortens_it() -> None:
    """A sibling's trip replaces an earlier end and cause of an open period, not a later one."""
    breaker, clock = opened(reset_timeout=60.0, reset_max=600.0)
    seen = changes(breaker)
    clock.advance(10.0)
    breaker.force_trip(cause="quota_exhausted")
    assert breaker.blocked_until() == 610.0
    assert refused(breaker).cause == "quota_exhausted"
    assert breaker.metrics().open_for == 610.0
    breaker.force_trip(cause="forbidden", retry_after=20.0)
    assert breaker.blocked_until() == 610.0
    outlasted, clock = make_breaker()
    outcome(outlasted, BreakerOutcome.TRIP, retry_after=7200.0, cause="quota_exhausted")
    outlasted.force_trip(cause="forbidden")
    outlasted.force_trip(cause="unauthenticated", retry_after=7200.0)
    assert outlasted.blocked_until() == 7200.0
    assert refused(outlasted).cause == "quota_exhausted"

    assert seen == []


def test_a_sibling_trips_a_half_open_breaker() -> None:
    """A sibling's trip ends the half-open round; the probe in flight casts no vote."""
    breaker, clock, probe = half_open()
    breaker.force_trip(cause="quota_exhausted")

    assert breaker.blocked_until() == clock.now + 600.0
    assert probe.settle(BreakerOutcome.SUCCESS).counted == "stale"
    assert breaker.metrics().state is OPEN


# Half-open


@pytest.mark.parametrize("places", [1, 3])
def test_a_thousand_callers_at_once_send_exactly_the_probes(places: int) -> None:
    """At the end of the open period, half_open_calls of 1000 callers are admitted."""
    breaker, clock = opened(half_open_calls=places)
    clock.advance(60.0)
    answers = [
        breaker.try_acquire_early() if number % 2 else breaker.acquire() for number in range(1000)
    ]
    probes = [each for each in answers if isinstance(each, Permit)]
    rejections = [each for each in answers if isinstance(each, Rejection)]

    assert len(probes) == places
    assert all(each.probe and each.state is HALF_OPEN for each in probes)
    assert len(rejections) == 1000 - places
    assert {(each.state, each.probing, each.retry_after) for each in rejections} == {
        (HALF_OPEN, True, 61.0)
    }


def test_a_probe_that_succeeds_closes_it() -> None:
    """A single required success closes the breaker, and all counts are reset."""
    breaker, _, probe = half_open()
    settlement = probe.settle(BreakerOutcome.SUCCESS)

    assert (settlement.counted, settlement.transition) == ("success", "half_open_to_closed")
    assert settlement.metrics == BreakerMetrics(CLOSED, 0.0, 0, 0, 3, None, None)
    assert breaker.snapshot()["openings_in_a_row"] == 0
    assert breaker.snapshot()["why"] is None


def test_as_many_successes_as_probes_close_it() -> None:
    """With three places, the third success closes the breaker; no fourth probe is admitted."""
    breaker, clock = opened(half_open_calls=3)
    clock.advance(60.0)
    first, second, third = send_call(breaker), send_call(breaker), send_call(breaker)
    assert first.settle(BreakerOutcome.SUCCESS).transition is None
    assert second.settle(BreakerOutcome.SUCCESS).transition is None
    assert not breaker.allows_calls(), "two have succeeded and the third is in flight"
    assert third.settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"


def test_probes_may_come_one_after_the_other() -> None:
    """Three probes in sequence close a breaker with three places."""
    breaker, clock = opened(half_open_calls=3)
    clock.advance(60.0)
    for _ in range(3):
        assert breaker.metrics().state is not CLOSED
        clock.advance(500.0)
        succeed(breaker)

    assert breaker.metrics().state is CLOSED


def test_a_probe_that_fails_opens_it_again() -> None:
    """One failure ends the round, whatever the outcomes of the other probes."""
    breaker, clock = opened(half_open_calls=3)
    clock.advance(60.0)
    first, second, third = send_call(breaker), send_call(breaker), send_call(breaker)
    first.settle(BreakerOutcome.SUCCESS)
    settlement = second.settle(BreakerOutcome.FAILURE, cause="server_error")

    assert (settlement.counted, settlement.transition) == ("failure", "half_open_to_open")
    assert settlement.metrics.open_for == 60.0
    assert third.settle(BreakerOutcome.SUCCESS).counted == "stale"
    assert refused(breaker).cause == "server_error"


def test_successes_of_an_earlier_round_do_not_count() -> None:
    """After a failed round, the next round begins with zero successes."""
    breaker, clock = opened(half_open_calls=2)
    clock.advance(60.0)
    succeed(breaker)
    fail(breaker)
    clock.advance(60.0)
    succeed(breaker)
    assert breaker.metrics().state is HALF_OPEN
    succeed(breaker)
    assert breaker.metrics().state is CLOSED


@pytest.mark.parametrize(
    ("hint", "length"), [(None, 60.0), (7.0, 60.0), (300.0, 300.0), (5000.0, 600.0)]
)
def test_a_throttled_probe_opens_it_again(hint: float | None, length: float) -> None:
    """A throttled probe opens for the time of a failed probe, or for a longer hint."""
    breaker, clock, probe = half_open()
    settlement = probe.settle(THROTTLED, retry_after=hint)

    assert (settlement.counted, settlement.transition) == ("throttled", "half_open_to_open")
    assert settlement.metrics.open_for == length
    assert settlement.metrics.consecutive == (4 if hint is None else 3)
    clock.advance(length)
    assert send_call(breaker).probe


def test_a_refused_probe_frees_its_place() -> None:
    """A refused probe does not close the circuit; in the closed state it is a success."""
    breaker, _, probe = half_open(fail_max=2)
    settlement = probe.settle(BreakerOutcome.REFUSED, cause="invalid_request")
    assert (settlement.counted, settlement.transition) == ("ignored", None)
    assert (breaker.metrics().state, breaker.allows_calls()) == (HALF_OPEN, True)
    succeed(breaker)
    fail(breaker)

    assert outcome(breaker, BreakerOutcome.REFUSED).counted == "success"
    assert (breaker.metrics().consecutive, breaker.metrics().window_calls) == (0, 2)


def test_a_tripping_probe_opens_it_again_for_long() -> None:
    """A probe with a fatal failure opens for `reset_max`, whatever its duration."""
    breaker, _, probe = half_open()

    assert probe.settle(BreakerOutcome.TRIP).transition == "half_open_to_open"
    assert breaker.metrics().open_for == 600.0


def test_a_neutral_probe_frees_its_place() -> None:
    """After a neutral outcome the breaker stays half-open, and the next caller is the probe."""
    breaker, _, probe = half_open()
    assert not breaker.allows_calls()
    settlement = probe.settle(BreakerOutcome.NEUTRAL)

    assert (settlement.counted, settlement.transition) == ("ignored", None)
    assert (breaker.metrics().state, breaker.allows_calls()) == (HALF_OPEN, True)
    assert send_call(breaker).settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"


def test_a_hung_probe_is_taken_as_failed_at_its_deadline() -> None:
    """A probe without an outcome fails at its deadline."""
    breaker, clock, probe = half_open(probe_deadline=61.0)
    began = clock.now
    clock.now = math.nextafter(began + 61.0, 0.0)
    assert breaker.metrics().state is HALF_OPEN
    clock.now = began + 61.0
    assert breaker.metrics().state is OPEN
    assert breaker.blocked_until() == began + 61.0 + 5 * 61.0
    rejection = refused(breaker)
    assert (rejection.cause, rejection.summary) == ("timeout", "timed out")
    assert probe.settle(BreakerOutcome.SUCCESS).counted == "failure", "it was counted already"


def test_the_first_of_several_hung_probes_decides() -> None:
    """The first probe that times out ends the round, whenever the others were sent."""
    breaker, clock = opened(half_open_calls=3, probe_deadline=61.0)
    clock.advance(60.0)
    reserved = breaker.try_acquire_early()
    assert isinstance(reserved, Permit)
    clock.advance(10.0)
    send_call(breaker)
    clock.advance(10.0)
    reserved.begin()
    assert breaker.try_acquire_early() is not None
    assert refused(breaker).retry_after == 51.0
    clock.advance(51.0)

    assert breaker.metrics().state is OPEN
    assert reserved.settle(BreakerOutcome.SUCCESS).counted == "stale"


def test_of_probes_due_together_the_first_sent_decides() -> None:
    """A probe that is sent again goes to the end of the order; the other probe decides."""
    breaker, clock = opened(half_open_calls=2)
    clock.advance(60.0)
    first, second = send_call(breaker), send_call(breaker)
    first.begin()
    clock.advance(61.0)

    assert first.settle(BreakerOutcome.SUCCESS).counted == "stale"
    assert second.settle(BreakerOutcome.SUCCESS).counted == "failure"


def test_a_hung_probe_found_late_failed_at_its_deadline() -> None:
    """A probe's time-out that is found late takes effect at its deadline; the next call probes."""
    breaker, clock, _ = half_open(probe_deadline=61.0)
    seen = changes(breaker)
    clock.advance(3600.0)

    assert send_call(breaker).probe
    assert seen == [("half_open", "open"), ("open", "half_open")]


def test_an_outcome_after_the_probes_deadline_does_not_count() -> None:
    """A success after the probe's deadline does not close, even without calls in between."""
    _, clock, probe = half_open(probe_deadline=61.0)
    clock.advance(61.0)
    settlement = probe.settle(BreakerOutcome.SUCCESS)

    assert (settlement.counted, settlement.transition) == ("failure", None)
    assert settlement.metrics.state is OPEN


def test_a_failure_has_the_origin_that_was_given_at_sending() -> None:
    """Rejections report this origin, unless the failure was settled with another one."""
    breaker, _ = make_breaker(fail_max=1)
    call = send_call(breaker)
    call.begin(origin="the request")
    call.settle(BreakerOutcome.FAILURE)
    assert refused(breaker).origin == "the request"


def test_the_origin_given_at_sending_names_a_hung_probe() -> None:
    """Later rejections have the origin of the probe that timed out."""
    breaker, clock = opened()
    clock.advance(60.0)
    probe = breaker.acquire()
    assert isinstance(probe, Permit)
    probe.begin(origin="span of the probe")
    clock.advance(61.0)

    assert refused(breaker).origin == "span of the probe"


# Probes that wait in a queue


def test_a_reserved_probe_counts_its_deadline_from_sending() -> None:
    """A probe's deadline does not include its time in the queue."""
    breaker, clock = opened(probe_deadline=61.0)
    clock.advance(60.0)
    probe = breaker.try_acquire_early()
    assert isinstance(probe, Permit)
    clock.advance(60.0)
    probe.begin()
    clock.advance(60.0)

    assert refused(breaker).retry_after == 1.0
    assert probe.settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"


def test_a_probe_that_is_never_sent_frees_its_place_without_a_vote() -> None:
    """A probe not sent within probe_deadline frees its place without a vote."""
    breaker, clock = opened(probe_deadline=61.0)
    clock.advance(60.0)
    held = breaker.try_acquire_early()
    assert isinstance(held, Permit)
    clock.advance(61.0)
    assert breaker.metrics().state is HALF_OPEN
    stale = [held.stale]
    other = send_call(breaker)
    stale.append(held.stale)

    assert stale == [False, True], "stale from the moment that another has its place"
    assert other.probe
    held.begin()
    clock.advance(5.0)
    assert held.settle(BreakerOutcome.FAILURE).counted == "stale"
    assert other.settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"


def test_a_probe_that_left_the_queue_late_takes_its_place_again() -> None:
    """If no other caller took the place, the late holder is the probe again, with its vote."""
    breaker, clock = opened(probe_deadline=61.0)
    clock.advance(60.0)
    held = breaker.try_acquire_early()
    assert isinstance(held, Permit)
    clock.advance(100.0)
    assert breaker.allows_calls()
    held.begin()
    assert not breaker.allows_calls()

    assert held.settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"


def test_a_reserved_probe_whose_state_is_over_is_stale() -> None:
    """A queued probe whose round has ended reports itself as stale."""
    breaker, clock = opened(half_open_calls=2)
    clock.advance(60.0)
    held = breaker.try_acquire_early()
    assert isinstance(held, Permit)
    stale = [held.stale]
    fail(breaker)
    stale.append(held.stale)
    held.begin()

    assert stale == [False, True]
    assert held.settle(BreakerOutcome.SUCCESS).counted == "stale"
    assert breaker.metrics().state is OPEN


def test_a_released_place_is_not_freed_twice() -> None:
    """A late neutral settlement of a probe that lost its place does not free another's place."""
    breaker, clock = opened(probe_deadline=61.0)
    clock.advance(60.0)
    held = breaker.try_acquire_early()
    assert isinstance(held, Permit)
    clock.advance(61.0)
    send_call(breaker)
    assert held.settle(BreakerOutcome.NEUTRAL).counted == "stale"
    assert not breaker.allows_calls()


# Settling


@pytest.mark.parametrize("second", list(BreakerOutcome))
def test_only_the_first_settlement_counts(second: BreakerOutcome) -> None:
    """Settling again, with whatever verdict, returns the first settlement and changes nothing."""
    breaker, _ = make_breaker(fail_max=2)
    permit = send_call(breaker)
    settled = [permit.settled]
    first = permit.settle(BreakerOutcome.FAILURE)
    settled.append(permit.settled)
    after = breaker.metrics()

    assert settled == [False, True]
    assert permit.settle(second, retry_after=99.0) is first
    assert breaker.metrics() == after


def test_a_permit_need_not_be_begun() -> None:
    """An outcome of a permit without `begin` counts."""
    breaker, _ = make_breaker(fail_max=1)
    permit = breaker.acquire()
    assert isinstance(permit, Permit)

    assert permit.settle(BreakerOutcome.FAILURE).transition == "closed_to_open"


def test_beginning_after_the_settlement_does_nothing() -> None:
    """A settled probe cannot take a place again."""
    breaker, _, probe = half_open()
    probe.settle(BreakerOutcome.NEUTRAL)
    probe.begin()

    assert breaker.allows_calls()
    assert breaker.snapshot()["probes_in_flight"] == 0


def test_generations_number_the_states() -> None:
    """Each state has its own generation number, which identifies late outcomes."""
    breaker, clock = make_breaker(fail_max=1)
    numbers = [send_call(breaker).generation]
    fail(breaker)
    clock.advance(60.0)
    probe = send_call(breaker)
    numbers.append(probe.generation)
    probe.settle(BreakerOutcome.SUCCESS)
    numbers.append(send_call(breaker).generation)

    assert numbers == [0, 2, 3]


def test_a_late_outcome_cannot_vote_in_a_later_closed_state() -> None:
    """Failures that began before the outage do not open a recovered breaker."""
    breaker, clock = make_breaker(fail_max=2)
    stragglers = [send_call(breaker) for _ in range(5)]
    fail(breaker, 2)
    clock.advance(60.0)
    succeed(breaker)
    for each in stragglers:
        assert each.settle(BreakerOutcome.FAILURE).counted == "stale"

    assert breaker.metrics() == BreakerMetrics(CLOSED, 0.0, 0, 0, 2, None, None)


def test_a_clock_that_steps_back_is_not_followed() -> None:
    """A clock that steps back does not lengthen an open period."""
    breaker, clock = opened(ManualClock(1000.0))
    clock.now = 1.0
    assert refused(breaker).retry_after == 60.0
    clock.now = 1060.0
    assert breaker.allows_calls()


def test_a_clock_may_count_from_anywhere() -> None:
    """The breaker works with any zero of the clock, negative times included."""
    breaker, clock = opened(ManualClock(-1000.0))
    assert breaker.blocked_until() == -940.0
    clock.advance(25.0)
    assert refused(breaker).retry_after == 35.0
    assert breaker.snapshot()["since_s"] == 25.0


def test_open_for_records_cause_summary_and_origin() -> None:
    """Rejections have cause, summary and origin, and the open period has the given length."""
    breaker, clock = make_breaker()
    breaker.open_for(30, cause="quota_exhausted", summary="429", origin="call 7")
    answer = refused(breaker)
    assert (answer.cause, answer.summary, answer.origin) == ("quota_exhausted", "429", "call 7")
    assert answer.retry_after == 30
    clock.advance(29.9)
    refused(breaker)
    clock.advance(0.1)
    send_call(breaker)


def test_an_answer_to_a_request_of_an_earlier_state_changes_no_times() -> None:
    """`answered` extends the time of current requests only."""
    breaker, clock = make_breaker(probe_deadline=10.0)
    late = send_call(breaker)
    breaker.open_for(5, cause=None, summary=None)
    clock.advance(5)
    send_call(breaker)
    clock.advance(9)
    late.answered()
    clock.advance(1)  # the probe's time is over, whatever became of the other

    assert breaker.metrics().state is OPEN


def test_an_answered_probe_gets_a_new_deadline() -> None:
    """After `answered`, a probe has a new deadline for processing the response."""
    breaker, clock, probe = half_open(probe_deadline=10.0, slow_call=9.0)
    clock.advance(8)
    probe.answered()
    clock.advance(9.9)
    assert breaker.metrics().state is HALF_OPEN
    clock.advance(0.1)
    assert breaker.metrics().state is OPEN
