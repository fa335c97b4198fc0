"""Which setting to take: by what matters most, among those that are no worse where it hurts."""

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
"""Seconds that a call without an image counts for, since its caller has to try again."""

_SLOWER: Final = 1.25
"""Factor on today's p95 that nobody is asked to bear for money or for loyalty."""
_MOST_UNSEEN: Final = 0.25
"""Share of the requests that may rest on assumptions; beyond it a setting is not recommended."""


class Objective(StrEnum):
    """What matters most."""

    FAST = "fast"
    """Seconds from asking to the image, on average; calls without one count `MISSED`."""
    CHEAP = "cheap"
    """Dollars an image, doomed requests included."""
    STAY = "stay"
    """The share of the images that the first route makes."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One setting and what it led to."""

    knobs: TunableSettings
    whole: Measures
    halves: tuple[Measures, Measures]
    """The same run's first and second half of the time."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One leaning's recommendation."""

    leaning: Objective
    trial: Evaluation
    gain: float
    """How much better than today's the score is on the whole recording, 0.1 for 10 %."""
    held_out: float
    """The same for what was chosen on one half and judged on the other, both ways, on average."""

    @property
    def generalizes(self) -> bool:
        """Whether it is better than today's on data that it was not chosen by."""
        return self.held_out > 0.0


def mean_with_missed(measures: Measures) -> float:
    """Seconds a call, those without an image counted in full."""
    spent = measures.mean_s * measures.images + measures.lost_s + MISSED * measures.failed
    return spent / max(1, measures.calls)


def _usd(measures: Measures) -> float:
    return measures.usd_per_image * (1.0 + measures.failed / max(1, measures.calls))


def _strayed(measures: Measures) -> float:
    """Share of the calls that the first route did not serve."""
    served = measures.first_share * measures.images
    return 1.0 - served / max(1, measures.calls)


_SCORES: Final[Mapping[Objective, tuple[Callable[[Measures], float], float]]] = {
    Objective.FAST: (mean_with_missed, 0.002),
    Objective.CHEAP: (_usd, 0.002),
    Objective.STAY: (_strayed, 0.02),
}
"""What is to be small, and which relative difference is none worth turning a knob for."""


def score(measures: Measures, leaning: Objective) -> float:
    """The number that the leaning wants small."""
    return _SCORES[leaning][0](measures)


def choose(
    trials: Sequence[Evaluation],
    leaning: Objective,
    today: Evaluation,
    part: Callable[[Evaluation], Measures] = attrgetter("whole"),
) -> Evaluation:
    """The best trial: of those as good as the best, the one nearest to today's settings.

    None that fails more calls than today's is considered, nor one that rests by more than a
    quarter on what was not seen, nor, unless speed is what matters, one whose p95 is more than a
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
        key=lambda trial: (trial.knobs.changed_from(today.knobs), value(part(trial)), trial.knobs),
    )


def advise(trials: Sequence[Evaluation], leaning: Objective, today: Evaluation) -> Recommendation:
    """Recommend, and say how the way of choosing does on halves that it has not seen."""
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
    """Those that no other beats in seconds, dollars and loyalty at once."""
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
