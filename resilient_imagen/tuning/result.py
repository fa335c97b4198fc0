"""Results for people and programs: the measures that columns have, each with its interval.

The text on the terminal, the page and ``tune --json`` show these, so their names are a contract.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from resilient_imagen.tuning.prediction import MEASURES, REPLAY_ERROR, Estimate, estimate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from resilient_imagen.tuning.run_metrics import Measures

__all__ = ["Metrics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The measures of one column. Times are in seconds, costs in US dollars, shares from 0 to 1."""

    mean_s: Estimate
    """Average time to the image, of all images."""
    p50_s: Estimate
    p95_s: Estimate
    primary_share: Estimate
    """Share of the images that the first route delivered."""
    fallback_share: Estimate
    """Share of the images that other routes delivered."""
    wasted_requests: Estimate
    """Requests that failed because of the service."""
    cost_usd_per_image: Estimate
    """Dollars per image, including wasted requests and requests that were abandoned."""
    lost_calls: Estimate
    """Calls without an image."""

    @classmethod
    def of(cls, runs: Sequence[Measures]) -> Metrics:
        """Return the measures of several runs of the same settings."""
        return cls(
            **{
                name: _within(name, estimate([read(run) for run in runs], error=REPLAY_ERROR))
                for name, read in MEASURES.items()
            }
        )

    def items(self) -> Iterator[tuple[str, Estimate]]:
        """Yield each measure with its name."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)


def _within(name: str, found: Estimate) -> Estimate:
    """Clip the interval to possible values."""
    most = 1.0 if name.endswith("_share") else math.inf
    return Estimate(found.value, max(0.0, found.low), min(most, found.high))
