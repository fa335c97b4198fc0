"""Predictions from recordings of an independent simulation, compared with its true results."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from paths import ROOT

pytestmark = pytest.mark.no_cover

FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    """Provide ``benchmarks/tuning_accuracy.py``, and remove its modules afterwards."""
    path, before = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("tuning_accuracy")
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "kind",
    [
        "flapping",
        "hangs",
        pytest.param("throttled", marks=pytest.mark.ci),
        pytest.param("both vendors", marks=pytest.mark.ci),
    ],
)
def test_the_pipeline_and_the_independent_simulation_waste_the_same_requests(
    study: ModuleType, kind: str
) -> None:
    """Both follow the documented rules, so with equal outcomes of requests their results agree."""
    (world,) = [each for each in study.worlds(hours=1.5) if each.name == kind]
    for name in ("eager", "abandon"):
        settings = study.OTHERS[name]
        true = study.simulate(world, settings).wasted
        assert study.exact(world, settings) == pytest.approx(true, rel=0.06, abs=3), name


@pytest.mark.ci
def test_a_half_working_service_recorded_under_the_defaults_is_predicted(
    study: ModuleType,
) -> None:
    """Looser settings send three times as many requests that fail, and keep most calls."""
    world = study.worlds(hours=2.5)[0]
    recorded = study.simulate(world, {})
    others = {name: study.OTHERS[name] for name in ("patient", "loose")}
    for case in study.cases([world], others, draws=3):
        true = case.true["wasted_requests"]
        assert true > 2.5 * recorded.wasted
        assert study.error(case, "wasted_requests") < 0.15 * true, case.settings
        assert study.error(case, "primary_share") < 0.1, case.settings


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_predictions_of_all_worlds_are_near_the_truth_and_their_intervals_contain_it(
    study: ModuleType,
) -> None:
    """Wasted requests are off by at most 25 in nine of ten cases; intervals hold in nine of ten."""
    found = list(study.cases(study.worlds()))
    assert len({case.world for case in found}) >= 8
    errors = sorted(study.error(case, "wasted_requests") for case in found)
    assert errors[int(0.9 * len(errors))] <= 25
    assert 0.80 <= study.coverage(found, found[0].true) <= 0.97
