"""What a sweep says, in words: the same in the terminal and on the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_imagen.tuning.rank import Leaning, score

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from resilient_imagen.tuning.measure import Measures
    from resilient_imagen.tuning.rank import Advice
    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.sweep import Sweep

__all__ = ["COLUMNS", "advice_line", "cells", "rest_line", "seen_line"]

COLUMNS: Final = (
    "p50 s", "p95 s", "p99 s", "failed", "by first", "doomed", "s on them", "$ on them", "$/image",
    "detect s", "recover s", "false openings", "unseen",
)  # fmt: skip

_WANTS: Final = {
    Leaning.FAST: "seconds a call",
    Leaning.CHEAP: "dollars an image",
    Leaning.STAY: "calls that leave the first route",
}


def cells(measures: Measures) -> Sequence[str]:
    """One setting's row of the table, in the order of COLUMNS."""
    return (
        f"{measures.p50_s:.1f}",
        f"{measures.p95_s:.1f}",
        f"{measures.p99_s:.1f}",
        f"{measures.failed}",
        f"{measures.first_share:.1%}",
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


def advice_line(advice: Advice) -> str:
    """Take it or not, and why."""
    wants = _WANTS[advice.leaning]
    if advice.gain <= 0:
        return "keep today's settings; none that was tried is better."
    if not advice.holds:
        return (
            "keep today's settings. What looked best was no better on the half of the recording"
            f" that it was not chosen by ({-advice.held_out:+.1%} {wants})."
        )
    return (
        f"{-advice.gain:+.1%} {wants}; {-advice.held_out:+.1%} on the halves of the recording that"
        " it was not chosen by."
    )


def rest_line(sweep: Sweep, leaning: Leaning) -> str:
    """How much a recommendation rests on what was not seen."""
    trial = sweep.advice[leaning].trial
    edges = sorted(score(measures, leaning) for measures in sweep.bounds[leaning])
    today = sorted(score(measures, leaning) for measures in sweep.today_bounds)
    digits = 4 if leaning is Leaning.CHEAP else 2
    unit = _WANTS[leaning]
    if leaning is Leaning.STAY:
        edges, today = [100 * each for each in edges], [100 * each for each in today]
        unit = f"% {unit}"
    return (
        f"{trial.whole.unseen:.1%} of its requests rest on what was not seen. With every gap in"
        f" the recording turned to the better or to the worse: {edges[0]:.{digits}f} to"
        f" {edges[1]:.{digits}f} {unit}; today's settings {today[0]:.{digits}f} to"
        f" {today[1]:.{digits}f}."
    )


def seen_line(recording: Recording) -> Iterator[str]:
    """What the recording holds, and what was left out of it."""
    for route, log in recording.routes.items():
        yield (
            f"{route}: {len(log)} requests recorded, {len(log.rejected)} callers turned away by"
            " its breaker (what they would have met is not known)."
        )
    for what, count in sorted(recording.notes.items()):
        yield f"{what}: {count}."
