"""Diagnosis: which settings would explain a recording that the assumed settings do not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from resilient_imagen.tuning.fidelity import Hint, distance
from resilient_imagen.tuning.result import Metrics
from resilient_imagen.tuning.tunable_settings import GRID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from resilient_imagen.tuning.fidelity import Fidelity
    from resilient_imagen.tuning.recommendation import Evaluation
    from resilient_imagen.tuning.tunable_settings import TunableSettings

__all__ = ["explain", "with_explanation"]

_ROUNDS: Final = 3
"""Maximum number of settings that are changed."""
_MUCH_NEARER: Final = 0.7
"""Maximum distance after a change, relative to that before it, for the change to explain some."""


def explain(
    recorded: Metrics,
    today: Evaluation,
    try_out: Callable[[Iterable[TunableSettings]], Iterable[Evaluation]],
) -> Sequence[Hint]:
    """Return the settings whose change brings the replay nearest to what was recorded.

    Args:
        recorded: The measures of what was recorded.
        today: The assumed settings.
        try_out: Replays settings.
    """
    calls = today.whole.calls

    def away(trial: Evaluation) -> float:
        return distance(recorded, Metrics.of([trial.whole]), calls)

    best = today
    for _ in range(_ROUNDS):
        nearest = min(try_out(_single_changes(best.knobs)), key=away, default=best)
        if away(nearest) > away(best) * _MUCH_NEARER:
            break
        best = nearest
        if away(best) <= 1.0:
            break
    together = "the replay gives what was recorded" if away(best) <= 1.0 else "the replay is nearer"
    lines = best.knobs.env_lines(today.knobs)
    with_it = "with it" if len(lines) == 1 else "with these settings"
    return [
        Hint(name, value, f"{with_it} {together}")
        for name, _, value in (line.partition("=") for line in lines)
    ]


def with_explanation(fidelity: Fidelity, explained: Sequence[Hint]) -> Fidelity:
    """Add settings that explain the recording; a replay says more than what contradicts them."""
    known = {hint.variable for hint in explained}
    others = (hint for hint in fidelity.hints if hint.variable not in known)
    return replace(fidelity, hints=(*others, *explained))


def _single_changes(knobs: TunableSettings) -> Iterator[TunableSettings]:
    for name, values in {**GRID, "mode": ("on", "off", "shadow")}.items():
        if name.startswith("fallback_"):
            continue
        for value in values:
            changed = replace(knobs, **{name: value})
            if changed != knobs and changed.is_valid:
                yield changed
