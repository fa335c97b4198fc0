"""A recording made under some settings predicts what others do in the same world: how well?

The stated error, over 26 seeded worlds and three settings far from those of the recording:

================  ==========  ================
                  half of     nine of ten
                  the cases   cases are within
================  ==========  ================
mean seconds      2 %         8 %
p95 seconds       3 %         16 %
by first route    2 points    6 points
dollars an image  0.5 %       2 %
wasted requests   6           24
================  ==========  ================

With the limits out of the way it is about half of that; queues near their limit magnify anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tuning_kit import ROOMY, SCENARIOS, TIGHT, record

from resilient_imagen import Settings
from resilient_imagen.tuning import Measures, simulate
from resilient_imagen.tuning.replay import replay
from resilient_imagen.tuning.run_metrics import measure

pytestmark = pytest.mark.no_cover

OTHERS: dict[str, dict[str, Any]] = {
    "patient": {"breaker_fail_max": 8, "breaker_reset_timeout": 30, "max_retries": 1},
    "eager": {"breaker_fail_max": 2, "breaker_reset_max": 120, "max_retries": 3},
    "nervous": {
        "breaker_fail_max": 1,
        "breaker_reset_timeout": 120,
        "max_retries": 0,
        "per_call_timeout": 45,
    },
}
HALF = {"mean": 0.02, "p95": 0.03, "share": 0.02, "usd": 0.005, "wasted_requests": 6}
# Requests past their limit go on beside the next route. A recording of slow images therefore has
# many that were cancelled, whose latency is known in part only.
CENSORED = {"slow, four times, slowly": {"usd": 0.03, "wasted_requests": 40}}
MOST = {"mean": 0.08, "p95": 0.16, "share": 0.06, "usd": 0.02, "wasted_requests": 24}


def errors(name: str, limits: dict[str, Any], other: str) -> dict[str, float]:
    """How far the replay of today's recording is from what really happens under other settings."""
    scenario = SCENARIOS[name]
    settings = Settings(**limits, **OTHERS[other])
    truly = simulate(scenario, settings, seed=3)
    played, truth = replay(record(scenario, Settings(**limits)), settings, seed=3)
    return distance(measure(played, truth.incidents()), truly)


def distance(replayed: Measures, truly: Measures) -> dict[str, float]:
    return {
        "mean": abs(replayed.mean_s / truly.mean_s - 1),
        "p95": abs(replayed.p95_s / truly.p95_s - 1),
        "share": abs(replayed.primary_share - truly.primary_share),
        "usd": abs(replayed.cost_usd_per_image / truly.cost_usd_per_image - 1),
        "wasted_requests": abs(replayed.wasted_requests - truly.wasted_requests),
    }


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("outage of 30 minutes", "patient"),
        ("throttling", "nervous"),
        pytest.param("flapping, 5 minutes of 30", "eager", marks=pytest.mark.ci),
        pytest.param("hang of 30 minutes", "eager", marks=pytest.mark.ci),
        pytest.param("slow, four times, slowly", "patient", marks=pytest.mark.ci),
        pytest.param("storyboards", "eager", marks=pytest.mark.ci),
    ],
)
def test_one_recording_of_each_kind_predicts_within_the_stated_error(name: str, other: str) -> None:
    """Each measure is within the stated error of nine in ten cases, or of censored recordings."""
    found = errors(name, ROOMY, other)
    most = {**MOST, **CENSORED.get(name, {})}
    assert {key: value for key, value in found.items() if value > most[key]} == {}


def test_replaying_under_the_recordings_own_settings_repeats_it() -> None:
    """Nothing changed: the same images by the same routes, and no outcome is assumed."""
    settings = Settings(**ROOMY)
    scenario = SCENARIOS["flapping, 5 minutes of 30"]
    truly = simulate(scenario, settings, seed=3)
    played, truth = replay(record(scenario, settings), settings, seed=3)
    replayed = measure(played, truth.incidents())
    assert distance(replayed, truly)["share"] < 0.01
    assert distance(replayed, truly)["mean"] < 0.01
    assert replayed.extrapolated_share < 0.01


def test_what_was_never_seen_is_said_to_be_unseen() -> None:
    """Without a breaker, requests are sent whose outcome a recording with few probes lacks."""
    scenario, settings = SCENARIOS["outage of 30 minutes"], Settings(**ROOMY, breaker_mode="off")
    played, truth = replay(record(scenario, Settings(**ROOMY, breaker_reset_timeout=600)), settings)
    assert measure(played, truth.incidents()).extrapolated_share > 0.1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("limits", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_all_recordings_predict_within_the_stated_error(limits: dict[str, Any]) -> None:
    """26 worlds under three settings each: the middle and the ninth tenth of the errors."""
    found = [errors(name, limits, other) for name in SCENARIOS for other in OTHERS]
    assert len(SCENARIOS) >= 20
    for key, half in HALF.items():
        ordered = sorted(each[key] for each in found)
        assert quantile(ordered, 0.5) <= half, key
        assert quantile(ordered, 0.9) <= MOST[key], key


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[int(share * len(ordered))]
