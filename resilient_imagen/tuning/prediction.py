"""Prediction: the measures of settings that were not recorded, with their intervals.

A recording is replayed several times. Each replay has another draw of what is not recorded: the
course of the regimes in the gaps, the outcomes in them, and the pipeline's jitter. The replays
differ by as much as the result is unknown. Each draw varies whole incidents, not single calls, so
the intervals are as wide as few long incidents require.

An interval is about the recorded time: the result of other settings for the same calls and the same
incidents. Another week has other incidents.
"""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.tuning.replay import replay
from resilient_imagen.tuning.run_metrics import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.run_metrics import Measures

__all__ = ["DRAWS", "MEASURES", "REPLAY_ERROR", "Estimate", "estimate", "predict"]

DRAWS: Final = 8
"""Number of replays of a prediction."""

_T_95: Final = {
    2: 6.31, 3: 2.92, 4: 2.35, 5: 2.13, 6: 2.02, 7: 1.94, 8: 1.89, 9: 1.86, 10: 1.83, 12: 1.80,
    16: 1.75, 20: 1.73, 30: 1.70,
}  # fmt: skip
"""Student's t of a two-sided interval of 90 %, by the number of values."""

REPLAY_ERROR: Final = 0.005
"""Share of a value by which a replay is wrong without any gap: a request that is sent a moment
earlier or later than the recorded one has another outcome (`tests/support/tuning_accuracy.py`)."""


class Estimate(NamedTuple):
    """A predicted measure."""

    value: float
    low: float
    """Lower end of the interval that contains the true value in 90 % of the cases."""
    high: float


MEASURES: Final[Mapping[str, Callable[[Measures], float]]] = {
    "mean_s": lambda each: each.mean_s,
    "p50_s": lambda each: each.p50_s,
    "p95_s": lambda each: each.p95_s,
    "primary_share": lambda each: each.primary_share,
    "fallback_share": lambda each: 1.0 - each.primary_share if each.images else 0.0,
    "wasted_requests": lambda each: each.wasted_requests,
    "cost_usd_per_image": lambda each: each.cost_usd_per_image,
    "lost_calls": lambda each: each.lost_calls,
}


def predict(
    recording: Recording, settings: Settings, *, draws: int = DRAWS
) -> Mapping[str, Estimate]:
    """Predict the measures of settings for the recorded time, with intervals of 90 %.

    Args:
        recording: The recording.
        settings: The settings.
        draws: Number of replays, at least 2.

    Raises:
        RuntimeError: A loop is running in this thread.
    """
    runs = []
    for draw in range(draws):
        played, truth = replay(recording, settings, seed=draw, draw=draw)
        runs.append(measure(played, truth.incidents()))
    return {
        name: estimate([value(run) for run in runs], error=REPLAY_ERROR)
        for name, value in MEASURES.items()
    }


def estimate(values: Sequence[float], *, error: float = 0.0) -> Estimate:
    """Return the mean of draws, and the interval in which another draw is in 90 % of the cases.

    Args:
        values: The draws.
        error: Share of the mean by which all draws may be wrong.
    """
    value, count = fmean(values), len(values)
    if count == 1:
        return Estimate(value, value, value)  # known, not drawn
    quantile = next((t for least, t in reversed(_T_95.items()) if count >= least), math.inf)
    drawn = quantile * stdev(values) * math.sqrt(1.0 + 1.0 / count)
    reach = math.hypot(drawn, error * value)
    return Estimate(value, value - reach, value + reach)
