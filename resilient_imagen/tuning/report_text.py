"""Report texts of a sweep, for the terminal and for the HTML page."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from resilient_imagen.tuning.recommendation import WANTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.fidelity import Fidelity
    from resilient_imagen.tuning.prediction import Estimate
    from resilient_imagen.tuning.recommendation import Objective, Recommendation
    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.result import Metrics
    from resilient_imagen.tuning.settings_in_effect import SettingsSource
    from resilient_imagen.tuning.sweep import Sweep

__all__ = [
    "INTERVALS",
    "advice_line",
    "changed_measures",
    "compared",
    "fidelity_lines",
    "gap_line",
    "labels",
    "left_out",
    "limit_lines",
    "metric_rows",
    "rest_line",
    "seen_line",
    "set_aside",
    "source_line",
]

INTERVALS: Final = "Ranges in parentheses are 90 % intervals."
"""Caption of the tables on the terminal."""

_MANY_REJECTED: Final = 0.1
"""Share of the calls that a breaker rejected from which recording in shadow mode is advised."""


def labels(routes: Iterable[str]) -> list[str]:
    """Return short names of routes: the provider, or the model if a provider has several."""
    pairs = [route.split(":", 1) for route in routes]
    times = Counter(provider for provider, _ in pairs)
    return [provider if times[provider] == 1 else model for provider, model in pairs]


def advice_line(advice: Recommendation) -> str:
    """Return whether to take a recommendation, and why."""
    wants = WANTS[advice.objective]
    if not advice.recommended:
        return f"keep your settings: {advice.objection}"
    gain = advice.gain
    return (
        f"{-gain.value:+.1%} {wants} ({-gain.high:+.1%} to {-gain.low:+.1%});"
        f" {-advice.held_out:+.1%} on the part of the calls that it was not chosen by."
    )


def rest_line(sweep: Sweep, objective: Objective) -> str:
    """Return how much a recommendation depends on assumed outcomes."""
    trial = sweep.advice[objective].trial
    return f"{trial.whole.extrapolated_share:.1%} of its requests rest on what was not seen."


# -- recorded against replayed --------------------------------------------------------------------

_TITLES: Final = {
    "mean_s": ("mean s", ".1f"),
    "p50_s": ("p50 s", ".1f"),
    "p95_s": ("p95 s", ".1f"),
    "primary_share": ("by the first route", ".1%"),
    "fallback_share": ("by other routes", ".1%"),
    "wasted_requests": ("wasted requests", ".0f"),
    "cost_usd_per_image": ("$ an image", ".4f"),
    "lost_calls": ("lost calls", ".0f"),
}
"""The title and format of each measure."""


def compared(sweep: Sweep) -> dict[str, Metrics]:
    """Return the columns of the table: recorded, replayed, and each recommended setting once."""
    found = {"recorded": sweep.recorded, "replayed": sweep.replayed}
    if sweep.present != sweep.replayed:
        found["breaker on"] = sweep.present
    if sweep.agreed is not None:
        return {**found, "recommended": next(iter(sweep.recommended.values())).metrics}
    return {**found, **{str(each): advice.metrics for each, advice in sweep.recommended.items()}}


def metric_rows(columns: Mapping[str, Metrics]) -> Iterator[Sequence[str]]:
    """Yield the rows of a table: the title of a measure, and its value in each column."""
    for name, (title, style) in _TITLES.items():
        yield title, *(_shown(dict(each.items())[name], style) for each in columns.values())


def changed_measures(before: Metrics, after: Metrics) -> Iterator[str]:
    """Yield each measure whose intervals do not overlap, with both values.

    The share of the other routes is left out: it is the rest of the first route's share.
    """
    old, new = dict(before.items()), dict(after.items())
    for name, (title, style) in _TITLES.items():
        apart = old[name].high < new[name].low or new[name].high < old[name].low
        values = [format(each[name].value, style) for each in (old, new)]
        if apart and values[0] != values[1] and name != "fallback_share":
            yield f"{title} from {values[0]} to {values[1]}"


def _shown(found: Estimate, style: str) -> str:
    value, low, high = (format(each, style) for each in found)
    return value if low == high else f"{value} ({low} to {high})"


def fidelity_lines(fidelity: Fidelity, source: SettingsSource) -> Iterator[str]:
    """Yield how the replay differs from what was recorded, and what to do about it.

    Args:
        fidelity: The comparison.
        source: The source of the replayed settings.
    """
    for each in fidelity.deviations:
        title, style = _TITLES[each.metric]
        numbers = (format(n, style) for n in (each.recorded, each.replayed, each.allowed))
        yield "{}: recorded {}, replayed {}; a difference of {} is allowed".format(title, *numbers)
    if fidelity.matches:
        return
    for hint in fidelity.hints:
        yield f"{hint.variable}: {hint.why}. Try --set {hint.variable}={hint.value}"
    yield source_line(source)


def source_line(source: SettingsSource) -> str:
    """Return where the replayed settings are from, and how to replay others."""
    if source == "recording":
        return (
            "The settings are those of the recording. Callers may pass deadlines or models of"
            " their own, or several clients may have been recorded as one."
        )
    if source == "file":
        return (
            "The settings are those of --env-file. Variables that it does not have were replayed"
            " with their defaults."
        )
    return (
        "The recording does not have its settings, so those of this shell were replayed. Give"
        " those of the application by --set NAME=VALUE or --env-file FILE."
    )


def seen_line(recording: Recording) -> Iterator[str]:
    """Yield the contents of the recording, and the skipped data."""
    for route, log in recording.routes.items():
        rejected = f"; its breaker rejected {len(log.rejected)} calls" if log.rejected else ""
        yield f"{route}: {len(log)} requests were recorded{rejected}."
    yield from gap_line(recording)
    yield from left_out(recording)


def gap_line(recording: Recording) -> Iterator[str]:
    """Yield the advice to record in shadow mode, if many calls were rejected by a breaker."""
    for route, log in recording.routes.items():
        share = len(log.rejected) / max(1, len(recording.asked))
        if share >= _MANY_REJECTED:
            yield (
                f"{route}: its breaker rejected {share:.0%} of the calls, so what requests meet in"
                " outages is estimated from few of them, and the ranges are wide. A recording with"
                " IMAGE_GEN_BREAKER_MODE=shadow has no such gaps; meanwhile all calls are admitted,"
                " and an outage costs each of them its retries."
            )


def left_out(recording: Recording) -> Iterator[str]:
    """Yield the kinds of data that the recording lacks."""
    if not recording.has_images:
        yield "There is no image in it: was the logger imagegen at INFO?"
    for what, count in sorted(recording.notes.items()):
        yield f"{what}: {count}."


def limit_lines(sweep: Sweep) -> Iterator[str]:
    """Yield the limits of the pace that make calls wait."""
    for each in sweep.limits:
        yield (
            f"Calls wait for the pace: with {each.variable}={each.value} alone they would take"
            f" {each.gain:.0%} less time, if the accounts allow as many requests."
        )


def set_aside(settings: Settings) -> Iterator[str]:
    """List present settings that the trials ignore."""
    if settings.breaker_mode != "on":
        yield (
            f"IMAGE_GEN_BREAKER_MODE is {settings.breaker_mode}: the recording is replayed so,"
            " all others with it on."
        )
    if settings.force_open:
        yield f"IMAGE_GEN_FORCE_OPEN ({', '.join(settings.force_open)}) is left out."
