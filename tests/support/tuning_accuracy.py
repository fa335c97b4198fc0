"""Accuracy study of the tuner: its predictions, compared with true results.

    python tests/support/tuning_accuracy.py [SEED...]

An independent simulation (`independent_client`) of 12 worlds records one run with the default
settings, from which the tuner predicts the results of five other settings. The simulation of the
same world under these settings gives the true results. A seed takes five minutes on one processor.

The last line states how far the pipeline is from the independent simulation if it knows the outcome
of every request: both are written from the same rules.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from independent_client import simulate
from independent_worlds import COSTS, World, worlds

from resilient_imagen import Reason, Settings
from resilient_imagen.tuning import Recording
from resilient_imagen.tuning.engine import run_simulation
from resilient_imagen.tuning.gather import gather
from resilient_imagen.tuning.import_logs import read_rows
from resilient_imagen.tuning.outcome_model import Incident, SimulatedOutcome, SimulatedRequest
from resilient_imagen.tuning.prediction import DRAWS, Estimate, predict
from resilient_imagen.tuning.run_metrics import measure

OTHERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "patient": {
        "breaker_fail_max": 8, "breaker_failure_rate": 0.7, "breaker_reset_timeout": 30.0,
        "max_retries": 1,
    },
    "eager": {
        "breaker_fail_max": 2, "breaker_reset_timeout": 15.0, "breaker_reset_max": 120.0,
        "max_retries": 3,
    },
    "nervous": {
        "breaker_fail_max": 1, "breaker_reset_timeout": 120.0, "max_retries": 0,
        "per_call_timeout": 45.0,
    },
    "loose": {
        "breaker_fail_max": 5, "breaker_failure_rate": 0.9, "breaker_reset_timeout": 15.0,
        "breaker_reset_factor": 0.0,
    },
    "abandon": {
        "on_timeout": "abandon", "per_call_timeout": 90.0, "breaker_reset_timeout": 30.0,
    },
}  # fmt: skip
"""Settings that differ from the defaults, by name."""
RELATIVE: Final = frozenset({"mean_s", "p95_s", "cost_usd_per_image"})
"""Measures whose error is a share of the true value."""


class Case(NamedTuple):
    """The prediction of one setting in one world, and the true results."""

    world: str
    settings: str
    predicted: Mapping[str, Estimate]
    true: Mapping[str, float]

    def covers(self, name: str) -> bool:
        """Return whether the interval of a measure contains the true value."""
        found = self.predicted[name]
        return found.low <= self.true[name] <= found.high


def record(world: World) -> Recording:
    """Return the recording of a world, with the default settings."""
    return gather(read_rows(simulate(world, {}).lines(), Counter()))


def cases(
    some: Iterable[World], others: Mapping[str, Mapping[str, Any]] = OTHERS, draws: int = DRAWS
) -> Iterator[Case]:
    """Predict and simulate each world under each of the settings."""
    for world in some:
        recording = record(world)
        for name, settings in others.items():
            predicted = predict(recording, Settings(**settings), draws=draws)
            yield Case(world.name, name, predicted, simulate(world, settings).figures())


def error(case: Case, name: str) -> float:
    """Return how far a prediction is from the true value."""
    apart = abs(case.predicted[name].value - case.true[name])
    return apart / case.true[name] if name in RELATIVE else apart


def coverage(some: Sequence[Case], names: Iterable[str]) -> float:
    """Return the share of the intervals that contain the true value."""
    found = [case.covers(name) for case in some for name in names]
    return sum(found) / len(found)


class _Known:
    """An outcome model with the true outcome of every request."""

    def __init__(self, world: World) -> None:
        self._world = world

    def outcome_for(self, ask: SimulatedRequest) -> SimulatedOutcome:
        """Return the outcome of a request."""
        _, call, route, number = ask.coin._parts  # the request's identity
        reason, seconds, hint = self._world.outcome(route, ask.at, call, number)
        found = None if reason is None else Reason(reason)
        return SimulatedOutcome(found, seconds, hint, COSTS[route])

    def incidents(self) -> Sequence[Incident]:
        """Return none: no compared measure needs them."""
        return ()


def exact(world: World, settings: Mapping[str, Any]) -> int:
    """Return the wasted requests of the pipeline that has the true outcome of every request."""
    run = run_simulation(Settings(**settings), _Known(world), world.arrivals())
    return measure(run, ()).wasted_requests


def main() -> None:
    found: list[Case] = []
    apart: list[float] = []
    for seed in [int(each) for each in sys.argv[1:]] or [0]:
        for world in worlds(seed):
            for case in cases([world]):
                found.append(case)
                apart.append(
                    abs(exact(world, OTHERS[case.settings]) - case.true["wasted_requests"])
                )
                print(line(case), flush=True)
    names = tuple(found[0].true)
    print("\nThe error in half of the cases and in nine of ten, and the coverage of the intervals:")
    for name in names:
        ordered = sorted(error(case, name) for case in found)
        half, most = (ordered[int(share * len(ordered))] for share in (0.5, 0.9))
        print(f"{name:20} {half:8.3f} {most:8.3f} {coverage(found, [name]):8.0%}")
    print(f"of all intervals {coverage(found, names):.0%}; cases: {len(found)}")
    print(f"wasted requests by the pipeline itself: {sorted(apart)[int(0.9 * len(apart))]:.0f}")


def line(case: Case) -> str:
    """Return a case as a line: predicted, half the interval, and true; ! if that is outside."""
    cells = (
        f"{found.value:.4g}±{found.high - found.value:.2g}/{case.true[name]:.4g}"
        + ("" if case.covers(name) else "!")
        for name, found in case.predicted.items()
        if name in case.true
    )
    return f"{case.world:28}{case.settings:9}" + "".join(f"{cell:>22}" for cell in cells)


if __name__ == "__main__":
    main()
