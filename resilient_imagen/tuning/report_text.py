"""Report texts of a sweep, for the terminal and for the HTML page."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from resilient_imagen.tuning.prediction import estimate
from resilient_imagen.tuning.recommendation import Objective, score

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.recommendation import Evaluation, Recommendation
    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.run_metrics import Measures
    from resilient_imagen.tuning.sweep import Sweep

__all__ = [
    "advice_line",
    "cells",
    "columns",
    "gap_line",
    "labels",
    "left_out",
    "rest_line",
    "seen_line",
    "set_aside",
    "shown",
]

_MANY_REJECTED: Final = 0.1
"""Share of the calls that a breaker rejected from which recording in shadow mode is advised."""

_WANTS: Final = {
    Objective.FAST: "seconds a call",
    Objective.CHEAP: "dollars an image",
    Objective.STAY: "calls that leave the first route",
}


def labels(routes: Iterable[str]) -> list[str]:
    """Return short names of routes: the provider, or the model if a provider has several."""
    pairs = [route.split(":", 1) for route in routes]
    times = Counter(provider for provider, _ in pairs)
    return [provider if times[provider] == 1 else model for provider, model in pairs]


def shown(sweep: Sweep) -> dict[str, Evaluation]:
    """Return the table's rows by name, without the defaults if they are the present settings."""
    usual = {} if sweep.usual.knobs == sweep.today.knobs else {"defaults": sweep.usual}
    advised = {str(leaning): advice.trial for leaning, advice in sweep.advice.items()}
    return {"today": sweep.today, **usual, **advised}


def columns(routes: Iterable[str]) -> Sequence[str]:
    """Return the table's columns for settings with these routes."""
    return (
        "p50 s", "p95 s", "p99 s", "failed", *(f"by {label}" for label in labels(routes)),
        "doomed", "s on them", "$ on them", "$/image", "detect s", "recover s", "false openings",
        "unseen",
    )  # fmt: skip


def cells(measures: Measures) -> Sequence[str]:
    """Return one setting's row of the table, in the order of the columns."""
    return (
        f"{measures.p50_s:.1f}",
        f"{measures.p95_s:.1f}",
        f"{measures.p99_s:.1f}",
        f"{measures.failed}",
        *(f"{share:.1%}" for share in measures.share.values()),
        f"{measures.doomed}",
        f"{measures.doomed_s:.0f}",
        f"{measures.doomed_usd:.2f}",
        f"{measures.usd_per_image:.4f}",
        _maybe(measures.detect_s),
        _maybe(measures.recover_s),
        f"{measures.false_openings}",
        f"{measures.unseen:.1%}",
    )


def _maybe(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.0f}"


def advice_line(advice: Recommendation) -> str:
    """Return whether to take a recommendation, and why."""
    wants = _WANTS[advice.leaning]
    if advice.gain <= 0:
        return "keep today's settings; none that was tried is better."
    if not advice.generalizes:
        return (
            "keep today's settings. What looked best was no better on the half of the recording"
            f" that it was not chosen by ({-advice.held_out:+.1%} {wants})."
        )
    return (
        f"{-advice.gain:+.1%} {wants}; {-advice.held_out:+.1%} on the halves of the recording that"
        " it was not chosen by."
    )


def rest_line(sweep: Sweep, leaning: Objective) -> str:
    """Return how much a recommendation depends on assumed outcomes."""
    trial = sweep.advice[leaning].trial
    found = _interval(sweep.draws[leaning], leaning)
    today = _interval(sweep.today_draws, leaning)
    return (
        f"{trial.whole.unseen:.1%} of its requests rest on what was not seen. In 90 % of the cases"
        f" the true result lies in such a range: {found} {_WANTS[leaning]};"
        f" today's settings {today}."
    )


def _interval(draws: Sequence[Measures], leaning: Objective) -> str:
    """Return the interval of a score, with its unit where that is a share."""
    found = estimate([score(measures, leaning) for measures in draws])
    if leaning is Objective.STAY:
        return f"{max(0.0, found.low):.1%} to {min(1.0, found.high):.1%}"
    digits = 4 if leaning is Objective.CHEAP else 2
    return f"{max(0.0, found.low):.{digits}f} to {found.high:.{digits}f}"


def seen_line(recording: Recording) -> Iterator[str]:
    """Yield the contents of the recording, and the skipped data."""
    for route, log in recording.routes.items():
        yield (
            f"{route}: {len(log)} requests recorded, {len(log.rejected)} callers turned away by"
            " its breaker (what they would have met is not known)."
        )
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


def set_aside(settings: Settings) -> Iterator[str]:
    """List present settings that the trials ignore."""
    if settings.breaker_mode != "on":
        yield (
            f"IMAGE_GEN_BREAKER_MODE is {settings.breaker_mode}: today's settings are played so,"
            " all others with it on."
        )
    if settings.force_open:
        yield f"IMAGE_GEN_FORCE_OPEN ({', '.join(settings.force_open)}) is left out."
