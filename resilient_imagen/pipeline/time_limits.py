"""Warnings about time limits: below a route's usual time, or too short to detect a hang."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from resilient_imagen import models
from resilient_imagen.pipeline.deadline import Deadline
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.step import Step
    from resilient_imagen.settings import Settings

__all__ = ["find_unnoticed_hang", "warn_of_short_limits"]

_DEFAULT_RESOLUTION: Final = "2K"
"""The resolution of a request that names none."""


def warn_of_short_limits(
    settings: Settings, routes: Iterable[Route], warn: Callable[[str, str], None]
) -> None:
    """Warn of each route that typically takes longer than its time limit.

    Args:
        settings: The settings that the limits come from.
        routes: The configured routes.
        warn: Called with a code and a message.
    """
    for route in routes:
        typical = models.find_latency(route.vendor, route.model, _DEFAULT_RESOLUTION)
        if typical is None or route.timeout >= typical.seconds:
            continue
        if route.vendor == "openai" and settings.openai_quality in {"low", "medium"}:
            continue  # the table is for quality high
        variable = settings.timeout_variable(route.provider.name, route.vendor)
        warn(
            "time_limit_below_typical",
            f"{variable}={route.timeout:g} is less than the {typical.seconds:g} s that an "
            f"image of {route.name} typically takes at {_DEFAULT_RESOLUTION} ({typical.basis}: "
            f"{typical.source}); raise {variable}",
        )


def find_unnoticed_hang(
    seconds: float, name: str, settings: Settings, steps: Sequence[Step]
) -> str | None:
    """Return a warning if a deadline's share for the first route is too short to notice a hang.

    Args:
        seconds: The deadline of a call.
        name: The name of the deadline in the warning.
        settings: The settings of the routes.
        steps: The steps, with at least two routes together.
    """
    if settings.breaker_slow_call is not None or not settings.falls_back_on(Reason.TIMEOUT):
        return None  # a call that does not fall back on a timeout leaves no reserve
    # Only one reserve is left: for the next step, or for the only step's other account.
    first, second = (steps[0] if len(steps) == 1 else [step[0] for step in steps])[:2]
    # A kept request continues until the second route delivers.
    kept = second.usual_latency("1K") or 0.0 if settings.on_timeout == "keep" else 0.0
    share = min(seconds, Deadline(seconds).less_reserve(0.0, second.timeout).at + kept)
    counts_after = first.cut_short_counts_after("1K")
    if share >= counts_after:
        return None
    before = counts_after - kept
    enough = max(counts_after, min(2 * before, before + second.timeout))
    return (
        f"{name}={seconds:g} leaves {share:g} s for a request to {first.name}, and a request that "
        f"is cut short counts as failed only if it ran for {counts_after:g} s, so that requests "
        f"that hang may never open the circuit; raise {name} to {math.ceil(enough)} or more, or "
        f"set IMAGE_GEN_BREAKER_SLOW_CALL to less than {share:g}"
    )
