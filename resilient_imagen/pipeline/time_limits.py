"""Warnings about time limits: below a route's usual time, or too short to detect a hang."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_imagen import models
from resilient_imagen.pipeline.deadline import Deadline

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
    if settings.breaker_slow_call is not None:
        return None
    # Only one reserve is left: for the next step, or for the only step's other account.
    first, second = (steps[0] if len(steps) == 1 else [step[0] for step in steps])[:2]
    share = Deadline(seconds).less_reserve(0.0, second.timeout).at
    if settings.on_timeout == "keep":  # then it goes on until the second route delivers
        share = min(seconds, share + (second.usual_latency("1K") or 0.0))
    counts_after = first.cut_short_counts_after("1K")
    if share >= counts_after:
        return None
    return (
        f"with {name}={seconds:g} {first.name} gets {share:g} s, and a request that is "
        f"cut short counts as failed from {counts_after:g} s on, so that requests that "
        "hang may never open its circuit; raise the deadline, or set "
        f"IMAGE_GEN_BREAKER_SLOW_CALL to less than {share:g}"
    )
