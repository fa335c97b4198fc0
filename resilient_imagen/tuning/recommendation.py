"""Recommendation: choose the best setting for an objective, within limits for the other metrics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from resilient_imagen.tuning.run_metrics import Measures
    from resilient_imagen.tuning.tunable_settings import TunableSettings

__all__ = [
    "MISSED",
    "Evaluation",
    "Objective",
    "Recommendation",
    "advise",
    "choose",
    "front",
    "score",
]

MISSED: Final = 600.0
"""Seconds that a call without an image counts, because its caller has to try again."""

_SLOWER: Final = 1.25
"""Maximum factor on the present p95 for the objectives ``cheap`` and ``stay``."""
_MOST_UNSEEN: Final = 0.25
"""Maximum share of requests with assumed outcomes for a recommended setting."""


class Objective(StrEnum):
    """The metric to optimize."""

    FAST = "fast"
    """Average seconds from the call to the image; a call without an image counts `MISSED`."""
    CHEAP = "cheap"
    """Dollars per image, including wasted requests."""
    STAY = "stay"
    """The share of the images that the first route delivers."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One setting and its measures."""

    knobs: TunableSettings
    whole: Measures
    halves: tuple[Measures, Measures]
    """The measures of the first and second half of the run."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The recommendation for one objective."""

    leaning: Objective
    trial: Evaluation
    gain: float
    """Relative improvement over the present setting on the whole recording, 0.1 for 10 %."""
    held_out: float
    """Average improvement by two-fold cross-validation on the halves of the recording."""

    @property
    def generalizes(self) -> bool:
        """Whether it also improves on data that it was not chosen on."""
        return self.held_out > 0.0


def mean_with_missed(measures: Measures) -> float:
    """Return the average seconds of a call, with `MISSED` for calls without an image."""
    spent = measures.mean_s * measures.images + measures.lost_s + MISSED * measures.failed
    return spent / max(1, measures.calls)


def _usd(measures: Measures) -> float:
    return measures.usd_per_image * (1.0 + measures.failed / max(1, measures.calls))


def _strayed(measures: Measures) -> float:
    """Return the share of the calls that the first route did not serve."""
    served = measures.first_share * measures.images
    return 1.0 - served / max(1, measures.calls)


_SCORES: Final[Mapping[Objective, tuple[Callable[[Measures], float], float]]] = {
    Objective.FAST: (mean_with_missed, 0.002),
    Objective.CHEAP: (_usd, 0.002),
    Objective.STAY: (_strayed, 0.02),
}
"""The score to minimize, and the relative difference that is too small to change a setting."""


def score(measures: Measures, leaning: Objective) -> float:
    """Return the score for an objective; lower is better."""
    return _SCORES[leaning][0](measures)


def choose(
    trials: Sequence[Evaluation],
    leaning: Objective,
    today: Evaluation,
    part: Callable[[Evaluation], Measures] = attrgetter("whole"),
) -> Evaluation:
    """Return the best trial; among nearly equal ones, the trial nearest to the present settings.

    Not considered are trials with more failed calls than the present settings, trials with more
    than a quarter of assumed outcomes, and, except for ``fast``, trials whose p95 is more than a
    quarter longer.
    """
    now = part(today)
    allowed = [
        trial
        for trial in trials
        if part(trial).failed <= now.failed
        and part(trial).unseen <= max(_MOST_UNSEEN, now.unseen)
        and (leaning is Objective.FAST or part(trial).p95_s <= now.p95_s * _SLOWER)
    ]
    value, tolerance = _SCORES[leaning]
    best = min((value(part(trial)) for trial in allowed), default=value(now))
    good = [trial for trial in allowed if value(part(trial)) <= best * (1 + tolerance) + 1e-12]
    if not good:
        return today
    return min(
        good,
        key=lambda trial: (
            trial.knobs.changed_from(today.knobs),
            value(part(trial)),
            trial.knobs.env_lines(),
        ),
    )


def advise(trials: Sequence[Evaluation], leaning: Objective, today: Evaluation) -> Recommendation:
    """Return a recommendation with its cross-validated improvement."""
    chosen = choose(trials, leaning, today)
    gains = []
    for learnt, judged in ((_first, _second), (_second, _first)):
        half = choose(trials, leaning, today, learnt)
        gains.append(_gain(judged(half), judged(today), leaning))
    return Recommendation(
        leaning, chosen, _gain(chosen.whole, today.whole, leaning), sum(gains) / len(gains)
    )


def _first(trial: Evaluation) -> Measures:
    return trial.halves[0]


def _second(trial: Evaluation) -> Measures:
    return trial.halves[1]


def _gain(new: Measures, old: Measures, leaning: Objective) -> float:
    before = score(old, leaning)
    return (before - score(new, leaning)) / before if before else 0.0


def front(trials: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the Pareto front by seconds, dollars and the first route's share."""
    points = [
        (trial, tuple(score(trial.whole, leaning) for leaning in Objective)) for trial in trials
    ]
    return [
        trial
        for trial, own in points
        if not any(
            other != own and all(a <= b for a, b in zip(other, own, strict=True))
            for _, other in points
        )
    ]
