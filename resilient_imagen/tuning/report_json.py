"""JSON report: the results of a sweep for programs. Its names are a contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.tuning.headline import headline, what_if_headline

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_imagen.tuning.evidence import Evidence
    from resilient_imagen.tuning.fidelity import Fidelity
    from resilient_imagen.tuning.result import Metrics
    from resilient_imagen.tuning.sweep import Sweep, WhatIf

__all__ = ["FORMAT", "as_json", "what_if_as_json"]

FORMAT: Final = 1
"""Version of the format. It changes if a name is removed or changes its meaning."""


def as_json(sweep: Sweep, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the results as JSON-ready data.

    Args:
        sweep: The sweep.
        settings: The settings that were replayed, by variable.
    """
    return {
        "format": FORMAT,
        "verdict": headline(sweep),
        "settings": dict(settings),
        **_basis(sweep.fidelity, sweep.evidence),
        "tried": len(sweep.trials),
        "interrupted": sweep.interrupted,
        "limits": [
            {"variable": each.variable, "value": each.value, "gain": each.gain}
            for each in sweep.limits
        ],
        "recorded": _metrics(sweep.recorded),
        "replayed": _metrics(sweep.replayed),
        "present": _metrics(sweep.present),
        "objectives": {
            str(objective): {
                "recommended": advice.recommended,
                "why_not": advice.objection or None,
                "settings": dict(
                    line.split("=", 1) for line in advice.trial.knobs.env_lines(sweep.today.knobs)
                )
                if advice.recommended
                else {},
                **_metrics(advice.metrics if advice.recommended else sweep.present),
            }
            for objective, advice in sweep.advice.items()
        },
    }


def what_if_as_json(
    found: WhatIf, settings: Mapping[str, str], changes: Mapping[str, str]
) -> dict[str, Any]:
    """Return a comparison as JSON-ready data.

    Args:
        found: The comparison.
        settings: The settings under which was recorded, by variable.
        changes: The variables that are changed.
    """
    return {
        "format": FORMAT,
        "verdict": what_if_headline(found, changes),
        "settings": dict(settings),
        **_basis(found.fidelity, found.evidence),
        "recorded": _metrics(found.recorded),
        "replayed": _metrics(found.replayed),
        "what_if": {"settings": dict(changes), **_metrics(found.changed)},
    }


def _basis(fidelity: Fidelity, evidence: Evidence) -> dict[str, Any]:
    return {
        "calls": evidence.calls,
        "incidents": evidence.incidents,
        "complete_incidents": evidence.complete_incidents,
        "matches": fidelity.matches,
        "deviations": [
            {
                "metric": each.metric,
                "recorded": each.recorded,
                "replayed": each.replayed,
                "allowed": each.allowed,
            }
            for each in fidelity.deviations
        ],
        "hints": [
            {"variable": each.variable, "value": each.value, "why": each.why}
            for each in fidelity.hints
        ],
    }


def _metrics(metrics: Metrics) -> dict[str, dict[str, float]]:
    return {
        name: {
            "value": round(found.value, 6),
            "low": round(found.low, 6),
            "high": round(found.high, 6),
        }
        for name, found in metrics.items()
    }
