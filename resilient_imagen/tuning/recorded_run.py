"""The recorded run: what happened, in the form of a simulated run, to be measured like one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from resilient_imagen.reasons import Reason
from resilient_imagen.settings import RouteName
from resilient_imagen.tuning.prices import image_cost
from resilient_imagen.tuning.recording import IMAGE, LEFT, REASONS
from resilient_imagen.tuning.simulation_run import SimulatedAttempt, SimulationResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.recording import Recording, RouteLog

__all__ = ["calls_that_stayed", "recorded_run"]

_BILLED: Final = frozenset({Reason.TIMEOUT, Reason.CANCELLED, Reason.DEADLINE})
"""Reasons of abandoned requests, which are billed like images, as in a simulated run."""
_UNKNOWN: Final = -1
"""In place of the number of a call."""


def recorded_run(recording: Recording, settings: Settings) -> SimulationResult:
    """Return what happened as a run.

    The changes of breakers and the calls that requests belong to are not known.

    Args:
        recording: The recording.
        settings: The settings with the routes; other recorded routes follow them.
    """
    configured = (route.key for route in settings.accounts)
    order = list(dict.fromkeys([*configured, *recording.routes]))
    result = SimulationResult(tuple(order))
    place = [order.index(name) for name in recording.routes]
    for index in calls_that_stayed(recording):
        served = recording.served[index]
        result.started.append(recording.asked[index])
        result.seconds.append(recording.took[index])
        result.served.append(place[served] if served >= 0 else -1)
    for name, log in recording.routes.items():
        usual = image_cost(RouteName(name), settings, log)
        result.sent.extend(_attempts(log, order.index(name), usual))
    return result


def calls_that_stayed(recording: Recording) -> Sequence[int]:
    """Return the calls whose callers did not leave. A replay knows of no caller who leaves."""
    return [index for index, served in enumerate(recording.served) if served != LEFT]


def _attempts(log: RouteLog, route: int, usual: float) -> Iterator[SimulatedAttempt]:
    for index in range(len(log)):
        number, cost = log.reason[index], log.cost[index]
        reason = None if number == IMAGE else REASONS[number]
        if math.isnan(cost):
            cost = usual if reason is None or reason in _BILLED else 0.0
        if reason is Reason.DEADLINE:
            reason = Reason.TIMEOUT  # as in a simulated run
        yield SimulatedAttempt(
            _UNKNOWN, route, log.at[index], log.latency[index], reason, cost, seen=True
        )
