"""Recommendation: choose the best setting for an objective, within limits for the other metrics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from resilient_imagen.tuning.prediction import Estimate, estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from resilient_imagen.tuning.result import Metrics
    from resilient_imagen.tuning.run_metrics import Measures
    from resilient_imagen.tuning.tunable_settings import TunableSettings

__all__ = [
    "LEAST_GAIN",
    "MISSED",
    "WANTS",
    "Contribution",
    "Evaluation",
    "Objective",
    "Recommendation",
    "choose",
    "front",
    "gain_of",
    "gain_on_draws",
    "held_out_gain",
    "is_allowed",
    "judge",
    "nearly_equal",
    "score",
    "too_slow",
]

MISSED: Final = 600.0
"""Seconds that a call without an image counts, because its caller has to try again."""
LEAST_GAIN: Final = 0.01
"""Relative improvement from which a setting is worth changing."""

_SLOWER: Final = 1.25
"""Maximum factor on the present p95 for the objectives ``cheap`` and ``stay``."""
_MAX_EXTRAPOLATED: Final = 0.25
"""Maximum share of requests with assumed outcomes for a recommended setting."""
_S_PER_WASTED: Final = 1.0
"""Seconds that a wasted request counts: it takes a place in the pace, and may be billed."""
_S_PER_USD: Final = 30.0
"""Seconds that a dollar counts for ``fast``."""
_USD_PER_WASTED: Final = 0.002
_STRAYED_PER_WASTED: Final = 0.02


class Objective(StrEnum):
    """The metric to optimize. Wasted requests and dollars count a little in each."""

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
    """The measures of the two parts of the calls (`folds_of`)."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """The part of a recommendation's gain that is due to one setting."""

    variable: str
    value: str
    gain: float
    """Relative improvement that is lost without this change alone."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The recommendation for one objective."""

    objective: Objective
    trial: Evaluation
    """The best setting that was found; the present one if none is better."""
    metrics: Metrics
    """Its measures, each with its interval."""
    gain: Estimate
    """Relative improvement over the present setting on the whole recording, 0.1 for 10 %."""
    held_out: float
    """Average improvement by two-fold cross-validation on parts of the recording."""
    objection: str
    """A sentence on why it is not recommended; empty if it is."""
    contributions: tuple[Contribution, ...] = ()
    """The changed settings, the most important one first."""

    @property
    def recommended(self) -> bool:
        """Whether to use it in place of the present settings."""
        return not self.objection

    @property
    def generalizes(self) -> bool:
        """Whether it also improves on data that it was not chosen on."""
        return self.held_out > 0.0


def mean_with_missed(measures: Measures) -> float:
    """Return the average seconds of a call, with `MISSED` for calls without an image."""
    spent = measures.mean_s * measures.images + measures.lost_s + MISSED * measures.lost_calls
    return spent / max(1, measures.calls)


def _wasted(measures: Measures) -> float:
    return measures.wasted_requests / max(1, measures.calls)


def _fast(measures: Measures) -> float:
    dollars = measures.cost_usd / max(1, measures.calls)
    return mean_with_missed(measures) + _S_PER_WASTED * _wasted(measures) + _S_PER_USD * dollars


def _usd(measures: Measures) -> float:
    spent = measures.cost_usd_per_image * (1.0 + measures.lost_calls / max(1, measures.calls))
    return spent + _USD_PER_WASTED * _wasted(measures)


def _strayed(measures: Measures) -> float:
    """Return the share of the calls that the first route did not serve."""
    served = measures.primary_share * measures.images
    strayed = 1.0 - served / max(1, measures.calls)
    return strayed + _STRAYED_PER_WASTED * _wasted(measures)


_SCORES: Final[Mapping[Objective, tuple[Callable[[Measures], float], float]]] = {
    Objective.FAST: (_fast, 0.002),
    Objective.CHEAP: (_usd, 0.002),
    Objective.STAY: (_strayed, 0.02),
}
"""The score to minimize, and the relative difference that is too small to change a setting."""


def score(measures: Measures, objective: Objective) -> float:
    """Return the score for an objective; lower is better."""
    return _SCORES[objective][0](measures)


def choose(
    trials: Sequence[Evaluation],
    objective: Objective,
    today: Evaluation,
    part: Callable[[Evaluation], Measures] = attrgetter("whole"),
) -> Evaluation:
    """Return the best trial; among nearly equal ones, the trial nearest to the present settings.

    Not considered are trials with more failed calls than the present settings, trials with more
    than a quarter of assumed outcomes, and, except for ``fast``, trials whose p95 is more than a
    quarter longer.
    """
    now = part(today)
    allowed = [trial for trial in trials if is_allowed(part(trial), now, objective)]
    value, tolerance = _SCORES[objective]
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


def is_allowed(measures: Measures, now: Measures, objective: Objective) -> bool:
    """Return whether a setting keeps the limits that the present measures set."""
    return (
        measures.lost_calls <= now.lost_calls
        and measures.extrapolated_share <= max(_MAX_EXTRAPOLATED, now.extrapolated_share)
        and (objective is Objective.FAST or measures.p95_s <= now.p95_s * _SLOWER)
    )


def nearly_equal(trial: Evaluation, other: Evaluation, objective: Objective) -> bool:
    """Return whether a setting is as good as another one, or better."""
    value, tolerance = _SCORES[objective]
    return (
        value(trial.whole) <= value(other.whole) * (1 + tolerance) + 1e-12
        and trial.whole.lost_calls <= other.whole.lost_calls
    )


def gain_of(new: Measures, old: Measures, objective: Objective) -> float:
    """Return the relative improvement of the score."""
    before = score(old, objective)
    return (before - score(new, objective)) / before if before else 0.0


def gain_on_draws(
    new: Sequence[Evaluation], old: Sequence[Evaluation], objective: Objective
) -> Estimate:
    """Return the improvement over several draws, each under both settings."""
    pairs = zip(new, old, strict=True)
    return estimate([gain_of(each.whole, before.whole, objective) for each, before in pairs])


def held_out_gain(trials: Sequence[Evaluation], objective: Objective, today: Evaluation) -> float:
    """Return the average improvement on the part of the calls that was not used to choose."""
    gains = []
    for learnt, judged in ((_first, _second), (_second, _first)):
        half = choose(trials, objective, today, learnt)
        gains.append(gain_of(judged(half), judged(today), objective))
    return sum(gains) / len(gains)


def _first(trial: Evaluation) -> Measures:
    return trial.halves[0]


def _second(trial: Evaluation) -> Measures:
    return trial.halves[1]


WANTS: Final[Mapping[Objective, str]] = {
    Objective.FAST: "seconds a call",
    Objective.CHEAP: "dollars an image",
    Objective.STAY: "calls that leave the first route",
}
"""What each objective has less of."""


def too_slow(new: Metrics, old: Metrics, objective: Objective) -> str:
    """Return a sentence if the average p95 of all draws exceeds the objective's limit."""
    before, after = old.p95_s.value, new.p95_s.value
    if objective is Objective.FAST or after <= before * _SLOWER:
        return ""
    return (
        f"the best one has a p95 of {after:.0f} s, more than a quarter above the present"
        f" {before:.0f} s."
    )


def judge(objective: Objective, gain: Estimate, held_out: float, *, changed: bool) -> str:
    """Return a sentence on why a setting is not recommended; empty if it is.

    Args:
        objective: The objective.
        gain: The improvement over the present settings.
        held_out: The improvement on calls that were not used to choose.
        changed: Whether the setting differs from the present one.
    """
    wants = WANTS[objective]
    if not changed or gain.value <= 0:
        return "none that was tried is better."
    if gain.value < LEAST_GAIN:
        return f"the best one changes {wants} by {-gain.value:+.1%}, which is not worth a change."
    if gain.low <= 0:
        return (
            f"the best one changes {wants} by {-gain.value:+.1%}, which may be chance"
            f" ({-gain.high:+.1%} to {-gain.low:+.1%})."
        )
    if held_out <= 0:
        return (
            "what looked best was no better on the part of the calls that it was not chosen by"
            f" ({-held_out:+.1%} {wants})."
        )
    return ""


def front(trials: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the Pareto front by seconds, dollars and the first route's share."""
    points = [
        (trial, tuple(score(trial.whole, objective) for objective in Objective)) for trial in trials
    ]
    return [
        trial
        for trial, own in points
        if not any(
            other != own and all(a <= b for a, b in zip(other, own, strict=True))
            for _, other in points
        )
    ]
