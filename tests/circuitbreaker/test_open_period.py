"""The length of an open period after a trip and after a failed probe."""

from __future__ import annotations

from typing import Any

import pytest
from breaker_kit import fail, half_open, make_breaker, opened, send_call

from resilient_imagen.circuitbreaker import BreakerConfig, CircuitBreaker, Permit
from resilient_imagen.reasons import BreakerOutcome

FAILURE, THROTTLED = BreakerOutcome.FAILURE, BreakerOutcome.THROTTLED


def open_for(breaker: CircuitBreaker) -> float | None:
    return breaker.metrics().open_for


def after_a_failed_probe(seconds: float, *, jitter: float = 0.0, **numbers: Any) -> float | None:
    """Return the open period after a probe that fails `seconds` after it was sent."""
    breaker, clock = make_breaker(jitter=jitter, **numbers)
    fail(breaker, 3)
    clock.now = breaker.blocked_until() or 0.0
    probe = send_call(breaker)
    clock.advance(seconds)
    probe.settle(FAILURE)
    return open_for(breaker)


@pytest.mark.parametrize("takes", [0.0, 10.0, 50.0])
@pytest.mark.parametrize(("jitter", "length"), [(0.0, 60.0), (1.0, 66.0)])
def test_a_trip_opens_for_the_reset_timeout(takes: float, jitter: float, length: float) -> None:
    """A trip opens for `reset_timeout` with jitter, however long the failed calls took."""
    breaker, clock = make_breaker(jitter=jitter)
    calls = [send_call(breaker) for _ in range(3)]
    clock.advance(takes)
    for call in calls:
        call.settle(FAILURE)

    assert open_for(breaker) == pytest.approx(length, abs=1e-9)


@pytest.mark.parametrize(
    ("seconds", "length"), [(0.3, 60.0), (10.0, 60.0), (12.5, 62.5), (20.0, 100.0), (60.0, 300.0)]
)
def test_a_failed_probe_opens_for_a_multiple_of_its_duration(seconds: float, length: float) -> None:
    """The default is five times the probe's duration, and at least `reset_timeout`."""
    assert after_a_failed_probe(seconds) == length


@pytest.mark.parametrize(
    ("numbers", "seconds", "length"),
    [
        ({"reset_factor": 0}, 60.0, 60.0),
        ({"reset_factor": 1.5}, 60.0, 90.0),
        ({"reset_timeout": 1.0}, 0.5, 2.5),
        ({"reset_max": 200.0}, 60.0, 200.0),
        ({"reset_factor": 1000}, 60.0, 600.0),
        ({"jitter": 1.0}, 0.3, 66.0),
        ({"jitter": 1.0}, 60.0, 330.0),
        ({"jitter": 0.5, "reset_factor": 1000}, 60.0, 630.0),
    ],
)
def test_factor_bounds_and_jitter(numbers: dict[str, Any], seconds: float, length: float) -> None:
    """Factor 0 always gives `reset_timeout`; jitter lengthens even `reset_max`."""
    assert after_a_failed_probe(seconds, **numbers) == pytest.approx(length, abs=1e-9)


def test_each_failed_probe_counts_alone() -> None:
    """Earlier openings do not lengthen later ones; the snapshot still counts them."""
    breaker, clock = opened()
    lengths = []
    for seconds in (0.3, 0.3, 60.0, 0.3, 30.0):
        clock.now = breaker.blocked_until() or 0.0
        probe = send_call(breaker)
        clock.advance(seconds)
        probe.settle(FAILURE)
        lengths.append(open_for(breaker))

    assert lengths == pytest.approx([60.0, 60.0, 300.0, 60.0, 150.0])
    assert breaker.snapshot()["openings_in_a_row"] == 6


def test_a_short_reset_timeout_is_not_lengthened_by_calls() -> None:
    """Failed calls are no probes, so the period is `reset_timeout`, even below `reset_factor`."""
    breaker, _ = opened(reset_timeout=1.0)

    assert open_for(breaker) == 1.0


def test_a_probes_duration_counts_from_sending() -> None:
    """The time in a queue before the sending is not a cost of the probe."""
    breaker, clock = opened()
    clock.advance(60.0)
    probe = breaker.try_acquire_early()
    assert isinstance(probe, Permit)
    clock.advance(40.0)
    probe.begin()
    clock.advance(20.0)
    probe.settle(FAILURE)

    assert open_for(breaker) == 100.0


def test_a_probes_duration_includes_a_response_that_fails() -> None:
    """A probe whose response turns out to be bad costs the time until this is found."""
    breaker, clock, probe = half_open()
    clock.advance(15.0)
    probe.answered()
    clock.advance(5.0)
    probe.settle(FAILURE)

    assert open_for(breaker) == 100.0


def test_a_probe_that_fails_before_it_is_sent_has_no_duration() -> None:
    """A failure without a sending opens for `reset_timeout`."""
    breaker, clock = opened(reset_timeout=1.0)
    clock.advance(1.0)
    probe = breaker.acquire()
    assert isinstance(probe, Permit)
    clock.advance(40.0)
    probe.settle(FAILURE)

    assert open_for(breaker) == 1.0


def test_the_probe_that_ends_the_half_open_state_determines_the_duration() -> None:
    """Neither an earlier success nor a probe in flight determines the period."""
    breaker, clock = opened(half_open_calls=3)
    clock.advance(60.0)
    in_flight, well = send_call(breaker), send_call(breaker)
    clock.advance(10.0)
    failing = send_call(breaker)
    clock.advance(15.0)
    well.settle(BreakerOutcome.SUCCESS)
    clock.advance(5.0)
    failing.settle(FAILURE)
    assert open_for(breaker) == 100.0
    clock.advance(20.0)
    in_flight.settle(FAILURE)

    assert open_for(breaker) == 100.0, "a late failure of the same round changes nothing"


@pytest.mark.parametrize("verdict", [FAILURE, THROTTLED])
@pytest.mark.parametrize(
    ("seconds", "hint", "length"),
    [
        (0.3, 7.0, 60.0),
        (0.3, 90.0, 90.0),
        (60.0, 90.0, 300.0),
        (60.0, 400.0, 400.0),
        (60.0, 5000.0, 600.0),
    ],
)
def test_a_hint_to_a_probe_competes_with_its_duration(
    verdict: BreakerOutcome, seconds: float, hint: float, length: float
) -> None:
    """The longer of both is the period, the hint up to `reset_max`; then the next call probes."""
    breaker, clock, probe = half_open()
    clock.advance(seconds)
    probe.settle(verdict, retry_after=hint)

    assert open_for(breaker) == pytest.approx(length, abs=1e-9)
    clock.now = breaker.blocked_until() or 0.0
    assert send_call(breaker).probe


@pytest.mark.parametrize(
    ("numbers", "length"),
    [
        ({"probe_deadline": 61.0}, 305.0),
        ({"probe_deadline": 61.0, "slow_call": 20.0}, 100.0),
        ({"probe_deadline": 10.0, "slow_call": 20.0}, 60.0),
    ],
)
def test_a_probe_ended_by_a_limit_has_lasted_until_then(
    numbers: dict[str, Any], length: float
) -> None:
    """The period begins at the limit, at whatever time it is noticed."""
    breaker, clock, _ = half_open(**numbers)
    limit = min(numbers.values())
    sent = clock.now
    clock.advance(62.0)

    assert open_for(breaker) == length
    assert breaker.blocked_until() == sent + limit + length


def test_the_factor_can_be_changed_at_run_time() -> None:
    """A probe in flight is judged by the factor at its failure."""
    breaker, clock, probe = half_open()
    clock.advance(60.0)
    breaker.reconfigure(BreakerConfig(reset_factor=2))
    probe.settle(FAILURE)

    assert open_for(breaker) == 120.0
