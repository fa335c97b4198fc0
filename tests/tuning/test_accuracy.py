"""Predictions from recordings of an independent simulation, compared with its true results."""

from __future__ import annotations

import pytest
from independent_client import simulate
from independent_worlds import worlds
from tuning_accuracy import OTHERS, cases, coverage, error, exact

pytestmark = pytest.mark.no_cover


@pytest.mark.parametrize(
    "kind",
    [
        "flapping",
        "hangs",
        pytest.param("throttled", marks=pytest.mark.ci),
        pytest.param("both vendors", marks=pytest.mark.ci),
    ],
)
def test_the_pipeline_and_the_independent_simulation_waste_the_same_requests(kind: str) -> None:
    """Both follow the documented rules, so with equal outcomes of requests their results agree."""
    (world,) = [each for each in worlds(hours=1.5) if each.name == kind]
    for name in ("eager", "abandon"):
        settings = OTHERS[name]
        true = simulate(world, settings).wasted
        assert exact(world, settings) == pytest.approx(true, rel=0.06, abs=3), name


@pytest.mark.ci
def test_a_half_working_service_recorded_under_the_defaults_is_predicted() -> None:
    """Looser settings send three times as many requests that fail, and keep most calls."""
    world = worlds(hours=2.5)[0]
    recorded = simulate(world, {})
    others = {name: OTHERS[name] for name in ("patient", "loose")}
    for case in cases([world], others, draws=3):
        true = case.true["wasted_requests"]
        assert true > 2.5 * recorded.wasted
        assert error(case, "wasted_requests") < 0.15 * true, case.settings
        assert error(case, "primary_share") < 0.1, case.settings


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_predictions_of_all_worlds_are_near_the_truth_and_their_intervals_contain_it() -> None:
    """Wasted requests are off by at most 25 in nine of ten cases; intervals hold in nine of ten."""
    found = list(cases(worlds()))
    assert len({case.world for case in found}) >= 8
    errors = sorted(error(case, "wasted_requests") for case in found)
    assert errors[int(0.9 * len(errors))] <= 25
    assert 0.80 <= coverage(found, found[0].true) <= 0.97
