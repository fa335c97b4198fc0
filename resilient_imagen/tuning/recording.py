"""Recording: the rows of a recording in memory, as a few number columns for each route."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from resilient_imagen.reasons import Reason
from resilient_imagen.tuning.outcome_model import fails

if TYPE_CHECKING:
    from resilient_imagen.tuning.rows import Attempted, Configured

__all__ = ["IMAGE", "LEFT", "LOST", "REASONS", "Recording", "RouteLog"]

REASONS: Final = tuple(Reason)
IMAGE: Final = -1
"""Value for an image in a column of reasons."""

LOST: Final = -1
"""In place of a route's index, for a call without an image."""
LEFT: Final = -2
"""In place of a route's index, for a call whose caller left."""

_COLUMNS: Final = ("latency", "reason", "hint", "cost", "given_up", "probe")


class RouteLog:
    """Every request to one route, in the order of sending, as columns."""

    __slots__ = ("__weakref__", "at", *_COLUMNS, "rejected")

    def __init__(self) -> None:
        self.at: array[float] = array("d")
        """Seconds since the recording's start."""
        self.latency: array[float] = array("d")
        self.reason: array[int] = array("b")
        """Index into REASONS, or IMAGE."""
        self.hint: array[float] = array("d")
        """Seconds; nan for none."""
        self.cost: array[float] = array("d")
        """US dollars; nan where unknown."""
        self.given_up: array[int] = array("b")
        self.probe: array[int] = array("b")
        self.rejected: array[float] = array("d")
        """Times at which the breaker rejected a call."""

    def __len__(self) -> int:
        """Return the number of requests sent."""
        return len(self.at)

    def add(self, row: Attempted) -> None:
        """Add a request."""
        self.at.append(row.at)
        self.latency.append(row.latency)
        self.reason.append(IMAGE if row.reason is None else REASONS.index(row.reason))
        self.hint.append(math.nan if row.hint is None else row.hint)
        self.cost.append(math.nan if row.cost is None else row.cost)
        self.given_up.append(row.given_up)
        self.probe.append(row.probe)

    def failed(self, index: int) -> bool:
        """Return whether a request failed because of the service."""
        number = self.reason[index]
        return number != IMAGE and fails(REASONS[number])

    def sort(self, origin: float) -> None:
        """Sort all columns by time, and convert times to seconds since ``origin``."""
        order = sorted(range(len(self.at)), key=self.at.__getitem__)
        self.at = array("d", [self.at[index] - origin for index in order])
        for name in _COLUMNS:
            column = getattr(self, name)
            setattr(self, name, array(column.typecode, [column[index] for index in order]))
        self.rejected = array("d", sorted(at - origin for at in self.rejected))


@dataclass(slots=True)
class Recording:
    """A recording in memory, ready for a replay."""

    origin: float = 0.0
    """The start in seconds since the epoch. All other times are relative to it."""
    asked: array[float] = field(default_factory=lambda: array("d"))
    """The start of each call, in order."""
    took: array[float] = field(default_factory=lambda: array("d"))
    """Seconds from the start of each call to its end."""
    served: array[int] = field(default_factory=lambda: array("h"))
    """Index in ``routes`` of the route that served each call, `LOST` or `LEFT`."""
    routes: dict[str, RouteLog] = field(default_factory=dict)
    """Requests by provider:model; the route that calls most often tried first comes first."""
    notes: Counter[str] = field(default_factory=Counter)
    """Counts of skipped data by kind."""
    settings: list[Configured] = field(default_factory=list)
    """Settings in effect, in order, with times relative to the start; without repetitions of what
    the same client reported before."""

    @property
    def duration(self) -> float:
        """Seconds from the first call to the last."""
        return self.asked[-1] if self.asked else 0.0

    @property
    def has_images(self) -> bool:
        """Whether any request delivered an image."""
        return any(IMAGE in log.reason for log in self.routes.values())

    def between(self, start: float, end: float) -> Recording:
        """Return the part with calls from ``start`` to before ``end``; its times begin at 0.

        It includes their requests, and requests shortly before and after, as evidence for the
        edges.
        """
        part = Recording(origin=self.origin + start, notes=Counter(self.notes))
        first, last = bisect_left(self.asked, start), bisect_left(self.asked, end)
        part.asked = array("d", [at - start for at in self.asked[first:last]])
        part.took, part.served = self.took[first:last], self.served[first:last]
        part.settings = [row._replace(at=row.at - start) for row in self.settings if row.at < end]
        for name, log in self.routes.items():
            cut = part.routes[name] = RouteLog()
            low, high = bisect_left(log.at, start), bisect_left(log.at, end)
            cut.at = array("d", [at - start for at in log.at[low:high]])
            for column in _COLUMNS:
                setattr(cut, column, getattr(log, column)[low:high])
            cut.rejected = array("d", [at - start for at in log.rejected if start <= at < end])
        return part
