"""The failure rate of a route over time, estimated from some of its requests."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from resilient_imagen.tuning.prediction import estimate
from resilient_imagen.tuning.regimes import HEALTHY, RegimePath, RegimePaths

pytestmark = pytest.mark.no_cover

HOUR = 3600.0


def requests(seed: int, rate: float, start: float, end: float, step: float = 10.0) -> list[
    tuple[float, bool]
]:  # fmt: skip
    """Return the time and failure of a request every ``step`` seconds."""
    chance = random.Random(seed)
    count = int((end - start) / step)
    return [(start + step * each, chance.random() < rate) for each in range(count)]


def failing(path: RegimePath, start: float, end: float) -> float:
    """Return the average failure rate of a path in an interval."""
    times = [start + 10.0 * each for each in range(int((end - start) / 10.0))]
    return fmean(path.rates[path.at(each)] for each in times)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8, 1.0])
def test_the_failure_rate_of_an_incident_is_found(rate: float) -> None:
    """An incident of half an hour stands out from the healthy hours around it."""
    outcomes = [
        *requests(1, 0.01, 0, HOUR),
        *requests(2, rate, HOUR, 1.5 * HOUR),
        *requests(3, 0.01, 1.5 * HOUR, 3 * HOUR),
    ]
    paths = RegimePaths(outcomes, 3 * HOUR)
    found = [paths.path(number) for number in range(10)]
    inside = fmean(failing(path, HOUR, 1.5 * HOUR) for path in found)
    assert inside == pytest.approx(rate, abs=0.1)
    assert fmean(failing(path, 0, 0.9 * HOUR) for path in found) < 0.03


def test_isolated_failures_are_no_incident() -> None:
    """One failure in fifty belongs to a healthy route."""
    path = RegimePaths(requests(4, 0.02, 0, 6 * HOUR), 6 * HOUR).path(0)
    assert path.regimes.count(HEALTHY) > 0.95 * len(path.regimes)
    assert path.rates[HEALTHY] == pytest.approx(0.02, abs=0.01)


def test_the_kind_of_other_incidents_applies_where_there_is_little_evidence() -> None:
    """Three failures mean less after outages in which half of the requests failed than after
    complete ones.
    """

    def at_the_tenth(rate: float) -> float:
        outcomes = []
        for number in range(9):
            start = number * HOUR
            outcomes += requests(number, 0.0, start, start + 2400)
            outcomes += requests(number + 50, rate, start + 2400, start + HOUR)
        outcomes += requests(0, 0.0, 9 * HOUR, 9 * HOUR + 2400)
        outcomes += [(9 * HOUR + 2400 + each, True) for each in (0, 10, 20)]
        paths = RegimePaths(outcomes, 10 * HOUR)
        start = 9 * HOUR + 2500
        return fmean(failing(paths.path(number), start, start + 100) for number in range(20))

    assert at_the_tenth(0.5) < at_the_tenth(1.0) - 0.1


def test_equal_requests_have_equal_paths() -> None:
    """A path depends on the requests and its number, not on the paths asked for before."""
    outcomes = requests(5, 0.3, 0, HOUR)
    one, other = RegimePaths(outcomes, HOUR), RegimePaths(outcomes, HOUR)
    last = one.path(7)
    assert other.path(7) == last
    assert one.path(2) == other.path(2)
    assert one.path(2) != last
    assert one.path(1_000_002) == one.path(2)


def test_the_number_of_steps_is_bounded() -> None:
    """A month of requests has longer steps; a month without any has long ones only there."""
    month = 30 * 24 * HOUR
    busy = [(100.0 * each, False) for each in range(int(month / 100))]
    path = RegimePaths(busy, month).path(0)
    assert len(path.regimes) <= 20_001
    assert path.at(month + 1.0) == path.regimes[-1]
    assert path.at(-1.0) == path.regimes[0]


def test_a_stray_request_a_month_earlier_does_not_blur_the_regimes() -> None:
    """Steps are short where requests were recorded."""
    month = 30 * 24 * HOUR
    outcomes = [
        (0.0, False),
        *requests(1, 0.0, month, month + HOUR),
        *requests(2, 1.0, month + HOUR, month + HOUR + 120),
        *requests(3, 0.0, month + HOUR + 120, month + 2 * HOUR),
    ]
    path = RegimePaths(outcomes, month + 2 * HOUR).path(0)
    assert failing(path, month + HOUR + 20, month + HOUR + 100) > 0.8
    assert failing(path, month + HOUR - 120, month + HOUR - 20) < 0.1
    assert failing(path, month + HOUR + 140, month + HOUR + 300) < 0.1


def test_dense_traffic_does_not_underflow() -> None:
    """A thousand requests a second have likelihoods below the smallest number."""
    outcomes = [(each / 1000, each % 2 == 0) for each in range(60_000)]
    path = RegimePaths(outcomes, 60.0).path(0)
    assert failing(path, 10, 50) == pytest.approx(0.5)


def test_a_recording_of_one_moment_has_a_path() -> None:
    """One request, and no duration."""
    assert len(RegimePaths([(0.0, False)], 0.0).path(0).regimes) == 1


def test_an_interval_contains_another_draw_in_nine_of_ten_cases() -> None:
    """Eight normal draws give the interval of a ninth one."""
    chance = random.Random(6)
    inside = 0
    for _ in range(1000):
        found = estimate([chance.gauss(5.0, 2.0) for _ in range(8)])
        inside += found.low <= chance.gauss(5.0, 2.0) <= found.high
    assert inside == pytest.approx(900, abs=30)
