"""Headline of a report: the verdict in one sentence, in the words of a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.effective_settings import as_text
from resilient_imagen.tuning.report_text import changed_measures, labels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from resilient_imagen.tuning.recommendation import Recommendation
    from resilient_imagen.tuning.sweep import Sweep, WhatIf

__all__ = ["first_route", "headline", "trade", "what_if_headline"]

_WORDS: Final = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip
_NAMES: Final = {"google": "Google", "openai": "OpenAI"}
_MINUTES_FROM: Final = 90.0
"""Seconds from which durations are given in minutes."""
_LEAST_SOONER_S: Final = 15.0
_LEAST_S: Final = 0.5
_LEAST_SHARE: Final = 0.005
_LEAST: Final = 0.01
"""Relative difference of cost below which it is not mentioned."""
_MOST_BENEFITS: Final = 2


class _Effect(NamedTuple):
    """The words for one difference: as a benefit, with the verb apart, or as a price."""

    better: bool
    verb: str
    words: str
    price: str


def headline(sweep: Sweep) -> str:
    """Return the verdict in one sentence; after an interruption, with the settings tried so far."""
    if not sweep.fidelity.matches:
        return "No advice yet: a replay of your settings does not give what was recorded."
    if not sweep.evidence.is_enough:
        return f"No advice yet. {sweep.evidence.missing}"
    tried = len(sweep.trials)
    stopped = f"Stopped after {min(tried, sweep.wanted)} of {sweep.wanted} settings"
    if not sweep.recommended:
        if sweep.interrupted:
            return f"{stopped}; none of them is better."
        return f"Keep your settings: of {tried} that were tried, none is clearly better."
    if sweep.agreed is None:
        answer = "Better settings exist; which ones depends on your aim."
    else:
        answer = trade(sweep, max(sweep.recommended.values(), key=lambda each: each.gain.value))
    return f"{stopped}. {answer}" if sweep.interrupted else answer


def what_if_headline(found: WhatIf, changes: Mapping[str, str]) -> str:
    """Return the answer of a comparison: the measures that differ beyond their intervals.

    Args:
        found: The comparison.
        changes: The variables that are changed.
    """
    if not found.fidelity.matches:
        return "No answer yet: a replay of your settings does not give what was recorded."
    measures = list(changed_measures(found.replayed, found.changed))
    if measures:
        verb = "changes" if len(changes) == 1 else "change"
        does = f" {verb} {_listed(measures)}; no other measure differs beyond its interval."
    else:
        does = ": no measure differs beyond its interval."
    answer = f"{as_text(changes)}{does}"
    if found.evidence.is_enough:
        return answer
    return f"{answer} There is little evidence for this. {found.evidence.missing}"


def trade(sweep: Sweep, advice: Recommendation) -> str:
    """Return what a recommendation gives, and its price, in one sentence."""
    count = len(advice.trial.knobs.env_lines(sweep.today.knobs))
    effects = list(_effects(sweep, advice))
    benefits = [each for each in effects if each.better][:_MOST_BENEFITS]
    prices = [each.price for each in effects if not each.better]
    lines = "One line" if count == 1 else f"{_count(count).capitalize()} lines"
    does = (
        " and ".join(f"{each.verb}{'s' if count == 1 else ''} {each.words}" for each in benefits)
        or f"improve{'s' if count == 1 else ''} the balance of all measures"
    )
    price = f", for {_listed(prices)}" if prices else ", at no price"
    return f"{lines} {does}{price}."


def first_route(sweep: Sweep) -> str:
    """Return a short name of the first route, as people write it."""
    name = labels(sweep.today.whole.share)[0]
    return _NAMES.get(name, name)


def _effects(sweep: Sweep, advice: Recommendation) -> Iterator[_Effect]:
    """Yield the differences that matter, the most important one first."""
    before, after, name = sweep.present, advice.metrics, first_route(sweep)
    old, new = sweep.today.whole.recover_s, advice.trial.whole.recover_s
    if old is not None and new is not None and abs(old - new) >= _LEAST_SOONER_S:
        by = _duration(abs(old - new))
        yield _Effect(
            new < old, "bring", f"you back to {name} {by} sooner", f"returning to {name} {by} later"
        )
    lost = round(before.lost_calls.value) - round(after.lost_calls.value)
    if lost:
        calls = _count(abs(lost)) + (" call" if abs(lost) == 1 else " calls")
        yield _Effect(lost > 0, "rescue", calls, f"{calls} more without an image")
    faster = before.mean_s.value - after.mean_s.value
    if abs(faster) >= _LEAST_S:
        by = f"{abs(faster):.1f} seconds"
        yield _Effect(
            faster > 0, "deliver", f"images {by} sooner on average", f"{by} more per image"
        )
    moved = after.primary_share.value - before.primary_share.value
    if abs(moved) >= _LEAST_SHARE:
        by = f"{abs(moved) * 100:.1f} more of 100 images"
        yield _Effect(moved > 0, "give", f"{name} {by}", f"{by} by others")
    saved = before.cost_usd_per_image.value - after.cost_usd_per_image.value
    if abs(saved) >= _LEAST * before.cost_usd_per_image.value:
        by = f"${abs(saved) * 1000:.2f}"
        yield _Effect(saved > 0, "save", f"{by} per 1,000 images", f"{by} more per 1,000 images")
    fewer = round(before.wasted_requests.value) - round(after.wasted_requests.value)
    if fewer:
        requests = "wasted request" if abs(fewer) == 1 else "wasted requests"
        by = _count(abs(fewer))
        yield _Effect(fewer > 0, "avoid", f"{by} {requests}", f"{by} more {requests}")


def _count(number: int) -> str:
    return _WORDS[number] if number < len(_WORDS) else f"{number:,}"


def _duration(seconds: float) -> str:
    if seconds < _MINUTES_FROM:
        return f"{seconds:.0f} seconds"
    return f"{_count(round(seconds / 60))} minutes"


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
