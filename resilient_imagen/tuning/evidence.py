"""Evidence: whether a recording shows enough to recommend anything, and its parts for validation.

A setting is chosen on one part and judged on the other. The parts consist of whole incidents with
the calls around them, as the calls of one incident say the same; without two incidents, of calls.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from resilient_imagen.tuning.recording import IMAGE, RouteLog

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from resilient_imagen.tuning.outcome_model import Incident
    from resilient_imagen.tuning.recording import Recording

__all__ = ["MIN_CALLS", "Evidence", "evidence_of", "folds_of"]

MIN_CALLS: Final = 100
"""Minimum calls of a recording from which anything is recommended."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a recording shows."""

    calls: int
    incidents: int
    """Incidents of the first route."""
    complete_incidents: int
    """Incidents with an image of the first route before their start and after their end."""
    requests: int
    """Requests to the first route."""
    failures: int
    """Requests to the first route that failed because of the service."""

    @property
    def is_enough(self) -> bool:
        """Whether settings can be recommended from it."""
        return not self.missing

    @property
    def missing(self) -> str:
        """A sentence about what is missing; empty if nothing is."""
        if self.calls < MIN_CALLS:
            return f"Only {self.calls} calls were recorded; at least {MIN_CALLS} are needed."
        if not self.incidents:
            return (
                "The first route never failed for long, so there is nothing to tune by:"
                f" {self.failures:,} of its {self.requests:,} requests failed, and an incident has"
                " at least three failures with few images between them, or two in a row at least"
                " ten seconds apart."
            )
        if not self.complete_incidents:
            return (
                "No incident of the first route was recorded from its start to its end; record for"
                " longer."
            )
        return ""


def evidence_of(recording: Recording, route: str, incidents: Sequence[Incident]) -> Evidence:
    """Return what a recording shows about its first route.

    Args:
        recording: The recording.
        route: The first route.
        incidents: Its incidents.
    """
    log = recording.routes.get(route, RouteLog())
    images = [at for at, number in zip(log.at, log.reason, strict=True) if number == IMAGE]
    complete = sum(
        bool(images) and images[0] < each.start and images[-1] >= each.end for each in incidents
    )
    failures = sum(map(log.failed, range(len(log))))
    return Evidence(len(recording.asked), len(incidents), complete, len(log), failures)


def folds_of(
    recording: Recording, incidents: Sequence[Incident]
) -> tuple[Collection[int], Collection[int]]:
    """Return the calls of two parts: every other incident with the calls around it.

    Calls belong to the nearest incident. Of a recording with less than two incidents, each part has
    half of the calls.
    """
    calls = range(len(recording.asked))
    if len(incidents) < 2:  # noqa: PLR2004 - two parts
        middle = len(calls) // 2
        return calls[:middle], calls[middle:]
    edges = [(before.end + after.start) / 2 for before, after in pairwise(incidents)]
    starts = [0, *(bisect_left(recording.asked, edge) for edge in edges), len(calls)]
    parts: tuple[list[int], list[int]] = ([], [])
    for number, (first, last) in enumerate(pairwise(starts)):
        parts[number % 2].extend(calls[first:last])
    return parts
