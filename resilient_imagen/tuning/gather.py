"""Gather: build a recording from its rows, which may be in any order."""

from __future__ import annotations

import math
from array import array
from collections import Counter, OrderedDict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from resilient_imagen.tuning.recording import IMAGE, LEFT, LOST, Recording, RouteLog
from resilient_imagen.tuning.rows import Asked, Attempted, Configured, RecordingError, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilient_imagen.tuning.rows import Row

__all__ = ["gather"]

_OUTCOMES: Final = {"error": LOST, "deadline": LOST, "cancelled": LEFT}
_MAX_ROUTES: Final = 1000
_MAX_OPEN_CALLS: Final = 100_000
"""Maximum calls whose lines may still follow; beyond it the oldest counts as complete. It bounds
the memory: so many need some 50 MB, and are made in a week of ten calls a minute."""


def gather(rows: Iterable[Row], notes: Counter[str] | None = None) -> Recording:
    """Build a recording from its rows, one by one.

    Args:
        rows: Rows in any order.
        notes: Counts of data that the reader skipped; the recording keeps and extends them.

    Raises:
        RecordingError: There is no request, or there are too many routes.
    """
    recording = Recording(notes=Counter() if notes is None else notes)
    calls, reports = _Calls(), _Reports()
    for row in rows:
        if isinstance(row, Configured):
            reports.add(row)
            continue
        if isinstance(row, Attempted):
            recording.routes.setdefault(row.route, RouteLog()).add(row)
        elif isinstance(row, Rejected):
            recording.routes.setdefault(row.route, RouteLog()).rejected.append(row.at)
        calls.add(row)
        if len(recording.routes) > _MAX_ROUTES:
            raise RecordingError(f"the recording holds more than {_MAX_ROUTES} routes")
    if not any(len(log) for log in recording.routes.values()):
        raise RecordingError("the recording holds no request that was sent")
    _check_units(recording)
    calls.close_all()
    order = sorted(range(len(calls.asked)), key=calls.asked.__getitem__)
    origin = recording.origin = calls.asked[order[0]]
    recording.asked = array("d", [calls.asked[index] - origin for index in order])
    recording.took = array("d", [calls.took[index] for index in order])
    recording.settings = [row._replace(at=row.at - origin) for row in reports.in_order()]
    for log in recording.routes.values():
        log.sort(origin)
    first = calls.first_routes
    recording.routes = dict(
        sorted(recording.routes.items(), key=lambda item: -first.get(item[0], 0))
    )
    places = {name: place for place, name in enumerate(recording.routes)}
    place_of = [places.get(name, LOST) for name in calls.names]
    recording.served = array(
        "h",
        [place_of[served] if (served := calls.served[index]) >= 0 else served for index in order],
    )
    return recording


_MEDIAN_LATENCY: Final = 1000.0
"""Maximum median of a route's latencies in seconds: images take seconds or a few minutes."""


def _check_units(recording: Recording) -> None:
    for name, log in recording.routes.items():
        images = [log.latency[index] for index in range(len(log)) if log.reason[index] == IMAGE]
        if images and (usual := median(images)) > _MEDIAN_LATENCY:
            raise RecordingError(
                f"half of the images of {name} have a latency of {usual:g} seconds or more; is it"
                " in milliseconds?"
            )


@dataclass(slots=True)
class _OpenCall:
    """What the lines of one call say so far."""

    at: float
    first_route: str | None = None
    took: float | None = None
    served: str | None = None
    outcome: str | None = None
    delivered: tuple[float, str] | None = None
    """End and route of the request whose image came first."""
    last: float = -math.inf
    """The end of its last request."""

    def add(self, row: Asked | Attempted | Rejected) -> None:
        at = row.at - row.queue if isinstance(row, Attempted) else row.at
        if not isinstance(row, Asked) and (at < self.at or self.first_route is None):
            self.first_route = row.route
        self.at = min(self.at, at)
        if isinstance(row, Asked):
            if row.took is not None or row.outcome is not None:
                self.took, self.outcome, self.served = row.took, row.outcome, row.served
            return
        end = row.at + (row.latency if isinstance(row, Attempted) else 0.0)
        self.last = max(self.last, end)
        if isinstance(row, Attempted) and row.reason is None:
            this = (end, row.route)
            self.delivered = this if self.delivered is None else min(self.delivered, this)

    def result(self) -> tuple[float, str | int]:
        """Return the seconds that it took, and the route that served it, `LOST` or `LEFT`."""
        end, route = self.delivered or (max(self.last, self.at), None)
        took = end - self.at if self.took is None else self.took
        if self.outcome in _OUTCOMES:
            return took, _OUTCOMES[self.outcome]
        return took, self.served or route or LOST


class _Calls:
    """The calls, as columns. Complete calls are moved there from memory that is larger."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _OpenCall] = OrderedDict()
        self._numbers: dict[str, int] = {}
        self.asked: array[float] = array("d")
        self.took: array[float] = array("d")
        self.served: array[int] = array("h")
        """Index in ``names``, `LOST` or `LEFT`."""
        self.first_routes: Counter[str] = Counter()

    @property
    def names(self) -> list[str]:
        """The routes that served calls."""
        return list(self._numbers)

    def add(self, row: Asked | Attempted | Rejected) -> None:
        call = self._open.get(row.call)
        if call is None:
            call = self._open[row.call] = _OpenCall(row.at)
            if len(self._open) > _MAX_OPEN_CALLS:
                self._close(self._open.popitem(last=False)[1])
        call.add(row)

    def _close(self, call: _OpenCall) -> None:
        took, served = call.result()
        self.asked.append(call.at)
        self.took.append(took)
        if isinstance(served, str):
            served = self._numbers.setdefault(served, len(self._numbers))
        self.served.append(served)
        if call.first_route is not None:
            self.first_routes[call.first_route] += 1

    def close_all(self) -> None:
        while self._open:
            self._close(self._open.popitem(last=False)[1])


class _Reports:
    """Reports of settings, without repetitions; they may come out of order."""

    def __init__(self) -> None:
        self._rows: list[Configured] = []
        self._limit = 1000

    def add(self, row: Configured) -> None:
        self._rows.append(row)
        if len(self._rows) > self._limit:
            self._rows = self.in_order()
            self._limit = max(1000, 2 * len(self._rows))

    def in_order(self) -> list[Configured]:
        latest: dict[str, str] = {}
        kept = []
        for row in sorted(self._rows):
            if latest.get(row.client) != row.settings:
                latest[row.client] = row.settings
                kept.append(row)
        return kept
