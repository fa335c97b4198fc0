"""The trip conditions and the length of open periods."""

from __future__ import annotations

import math
import random

import pytest
from breaker_kit import make_breaker
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen.circuitbreaker.config import BreakerConfig
from resilient_imagen.circuitbreaker.open_period import open_duration, trip_duration, valid_hint
from resilient_imagen.circuitbreaker.window import BUCKETS, TripRule, Window

OUTCOMES = st.lists(
    st.tuples(st.floats(0, 400, allow_nan=False), st.booleans()), min_size=1, max_size=60
)


@given(OUTCOMES, st.floats(0, 1000), st.sampled_from([7.0, 60.0, 300.0]))
def test_window_counts_exactly_the_outcomes_of_its_buckets(
    outcomes: list[tuple[float, bool]], later: float, seconds: float
) -> None:
    """An outcome counts while its bucket is the present one or among the 59 before it."""
    window, moment, width = Window(seconds), 0.0, seconds / BUCKETS
    kept = []
    for gap, failed in outcomes:
        moment += gap
        window.add(moment, failed=failed)
        kept.append((moment, failed))
    now = moment + later
    window.roll(now)
    counted = [
        failed for at, failed in kept if math.floor(now / width) - math.floor(at / width) < BUCKETS
    ]

    assert (window.calls, window.failures) == (len(counted), sum(counted))
    assert window.failure_rate == (sum(counted) / len(counted) if counted else 0.0)


def test_an_outcome_never_counts_longer_than_the_window_nor_much_shorter() -> None:
    """An outcome counts for at least 59/60 of the window and at most all of it."""
    for begin in (0.0, 0.1, 4.99, 1234.5):
        window = Window(60.0)
        window.add(begin, failed=True)
        window.roll(begin + 59.0 - 1e-6)
        assert window.calls == 1, begin
        window.roll(begin + 60.0)
        assert window.calls == 0, begin


def test_old_outcomes_leave_in_order_of_age() -> None:
    """The failure rate is that of the outcomes that remain in the window."""
    window = Window(60.0)
    for moment, failed in ((0.0, True), (10.0, True), (20.0, False), (30.0, True)):
        window.add(moment, failed=failed)
    seen = []
    for moment in (59.0, 60.0, 70.0, 80.0, 90.0):
        window.roll(moment)
        seen.append((window.calls, window.failures))

    assert seen == [(4, 3), (3, 2), (2, 1), (1, 1), (0, 0)]


def test_window_of_a_clock_below_zero_counts_too() -> None:
    """The window works with negative clock times."""
    window = Window(60.0)
    window.add(-1000.25, failed=True)
    window.add(-999.75, failed=False)

    assert (window.calls, window.failures) == (2, 1)
    window.roll(-900.0)
    assert window.calls == 0


def test_clear_drops_all_earlier_outcomes() -> None:
    """After `clear` only later outcomes count."""
    window = Window(60.0)
    window.add(100.0, failed=True)
    window.clear()
    window.add(100.0, failed=False)

    assert (window.calls, window.failures) == (1, 0)


@pytest.mark.parametrize("factor", [2.0, 1.0, 3.7])
def test_a_longer_window_keeps_every_outcome(factor: float) -> None:
    """Resizing to the same or a longer time keeps all outcomes."""
    window = Window(300.0)
    for second in range(300):
        window.add(1000.0 + second, failed=second % 3 == 0)
    resized = window.resized(300.0 * factor, 1299.0)

    assert (resized.calls, resized.failures) == (window.calls, window.failures) == (300, 100)
    assert resized.seconds == 300.0 * factor


def test_a_shorter_window_keeps_the_youngest_outcomes() -> None:
    """Resizing to a tenth keeps about the last tenth with its age."""
    window = Window(300.0)
    for second in range(300):
        window.add(float(second), failed=second < 150)
    resized = window.resized(30.0, 299.0)

    assert 25 <= resized.calls <= 35
    assert resized.failures == 0
    resized.roll(299.0 + 31.0)
    assert resized.calls == 0


def test_resizing_keeps_the_age_of_outcomes() -> None:
    """Resizing moves an outcome to the bucket at the middle of its old bucket."""
    window = Window(6000.0)  # buckets of 100 s
    window.add(1010.0, failed=True)  # goes over as one of 1050 s
    resized = window.resized(1200.0, 2000.0)  # buckets of 20 s
    counted = []
    for moment in (2239.9, 2240.0):
        resized.roll(moment)
        counted.append(resized.calls)

    assert counted == [1, 0]
    assert window.resized(1200.0, 2239.9).calls == 1
    assert window.resized(1200.0, 2240.0).calls == 0


def test_resizing_does_not_move_outcomes_into_the_future() -> None:
    """Outcomes in the present bucket are not counted as younger than now after resizing."""
    window = Window(6000.0)  # buckets of 100 s
    window.add(1.0, failed=True)
    resized = window.resized(60.0, 2.0)

    assert resized.calls == 1
    resized.roll(62.0)
    assert resized.calls == 0


def test_consecutive_failures_trip_and_a_success_resets_them() -> None:
    """The consecutive count trips at fail_max, and a success resets it."""
    rule = TripRule(BreakerConfig(fail_max=2, min_calls=100))
    met = []
    rule.failure(0.0)
    met.append(rule.consecutive_exceeded)
    rule.success(0.0)
    rule.failure(0.0)
    met.append(rule.consecutive_exceeded)
    rule.throttled()
    met.append(rule.consecutive_exceeded)

    assert met == [False, False, True]
    assert (rule.window.calls, rule.window.failures) == (3, 2)


def test_the_failure_rate_needs_enough_calls() -> None:
    """Half of five calls does not trip; half of six does."""
    rule = TripRule(BreakerConfig(fail_max=100, failure_rate=0.5, min_calls=6))
    for _ in range(3):
        rule.failure(0.0)
    for _ in range(2):
        rule.success(0.0)
    met = [rule.failure_rate_exceeded]
    for _ in range(2):
        rule.success(0.0)
        met.append(rule.failure_rate_exceeded)

    assert met == [False, True, False]


def test_metrics_show_both_thresholds() -> None:
    """Metrics contain `fail_max` and `failure_rate` beside the counts that they limit."""
    breaker, _ = make_breaker(fail_max=7, failure_rate=0.25)
    metrics = breaker.metrics()

    assert (metrics.failure_threshold, metrics.failure_rate_threshold) == (7, 0.25)


def test_reconfiguring_keeps_all_counts() -> None:
    """Reconfiguring keeps all counts and compares them with the new limits."""
    rule = TripRule(BreakerConfig(fail_max=5, min_calls=100))
    for _ in range(3):
        rule.failure(10.0)
    same = rule.window
    rule.reconfigure(BreakerConfig(fail_max=3, min_calls=3), 10.0)

    assert rule.window is same
    assert rule.consecutive_exceeded
    assert rule.failure_rate_exceeded
    rule.reconfigure(BreakerConfig(fail_max=3, min_calls=3, window=30.0), 10.0)
    assert (rule.window.seconds, rule.window.calls, rule.consecutive) == (30.0, 3, 3)


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (None, None),
        (0.0, None),
        (-5.0, None),
        (math.nan, None),
        (0.2, 0.2),
        (1e6, 86_400.0),
        (1e9, None),
        (math.inf, None),
    ],
)
def test_only_a_believable_hint_is_valid(hint: float | None, expected: float | None) -> None:
    """A hint of zero, less or more than a month is ignored; one of days is reduced to one day."""
    assert valid_hint(hint) == expected


def test_jitter_lengthens_by_up_to_a_tenth_even_the_maximum() -> None:
    """Jitter lengthens an open period by up to 10 %, even beyond the maximum."""
    config = BreakerConfig(reset_timeout=60.0, reset_max=600.0)
    dice = random.Random(7)
    lengths = [open_duration(config, 0.0, None, dice.random) for _ in range(2000)]

    assert 60.0 <= min(lengths) < 60.2
    assert 65.8 < max(lengths) <= 66.0
    assert open_duration(config, 180.0, None, lambda: 1.0) == pytest.approx(660.0)
    assert trip_duration(config, None, lambda: 1.0) == pytest.approx(660.0)


def test_a_hint_makes_an_opening_no_shorter_and_counts_up_to_the_maximum() -> None:
    """A failure's hint lengthens the open period, up to reset_max."""
    config = BreakerConfig(reset_timeout=60.0, reset_max=600.0)

    assert open_duration(config, 0.0, 30.0, lambda: 0.0) == 60.0
    assert open_duration(config, 0.0, 90.0, lambda: 1.0) == 90.0
    assert open_duration(config, 0.0, 5000.0, lambda: 0.0) == 600.0
    assert open_duration(BreakerConfig(reset_timeout=0.5), 0.0, None, lambda: 0.0) == 0.5


def test_a_trip_lasts_the_maximum_or_a_longer_hint_up_to_a_day() -> None:
    """A trip lasts reset_max, or a longer hint of up to 24 hours."""
    config = BreakerConfig(reset_timeout=60.0, reset_max=600.0)

    assert trip_duration(config, None, lambda: 0.0) == 600.0
    assert trip_duration(config, 30.0, lambda: 0.0) == 600.0
    assert trip_duration(config, 600.0, lambda: 1.0) == pytest.approx(660.0), "no longer hint"
    assert trip_duration(config, 600.5, lambda: 1.0) == 600.5
    assert trip_duration(config, 7200.0, lambda: 1.0) == 7200.0
    assert trip_duration(config, math.inf, lambda: 1.0) == 86_400.0


def test_a_maximum_beyond_a_day_is_not_cut_by_a_hint() -> None:
    """The limit on hints never makes a trip shorter than reset_max."""
    config = BreakerConfig(reset_timeout=60.0, reset_max=100_000.0)

    assert trip_duration(config, 200_000.0, lambda: 0.0) == 100_000.0
