"""Recording: calls, requests and rejections with their times and outcomes.

On disk it is JSONL, one object a line, times in seconds since the epoch, of three kinds::

    {"asked": 1764000000.0, "call": "c1"}
    {"sent": 1764000000.1, "call": "c1", "route": "google:gemini-3-pro-image", "latency": 1.2,
     "reason": "overloaded"}
    {"rejected": 1764000003.0, "call": "c2", "route": "google:gemini-3-pro-image"}

``asked``: a call started. ``sent``: a request was sent; ``reason`` is absent if it delivered an
image, ``hint`` is the wait that the server asked for, in seconds, ``cost`` is in US dollars,
``queue`` is the wait before sending in seconds, and ``given_up`` is true if the request was
abandoned, so that its outcome is unknown. ``rejected``: the breaker rejected the call. ``call``
identifies the lines of one call. Lines may be in any order (with up to a million other calls
between the lines of one call).

In memory it consists of a few number columns for each route.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from resilient_imagen.reasons import Reason
from resilient_imagen.tuning.outcome_model import fails

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MALFORMED",
    "Asked",
    "Attempted",
    "Recording",
    "RecordingError",
    "Rejected",
    "RouteLog",
    "Row",
    "as_float",
    "checked",
    "checked_route",
    "gather",
    "to_json",
]

REASONS: Final = tuple(Reason)
IMAGE: Final = -1
"""Value for an image in a column of reasons."""

_LONGEST_NAME: Final = 200
"""Maximum characters of the name of a route or a call; ours have some dozens."""
_MAX_ROUTES: Final = 1000
_NO_TIME: Final = 1e11
"""Seconds since the epoch, in the year 5138: later times are in milliseconds (from 1973 on)."""
_ROUNDING: Final = 1.0
"""Seconds before the epoch that are accepted, for a recording whose clock began at 0."""
_POSSIBLE: Final = {
    "latency": (0.0, 1e7),
    "cost": (0.0, 1e6),
    "queue": (-1e7, 1e7),
    "hint": (-1e9, 1e9),
}
"""Minimum and maximum of each number."""

_MAX_OPEN_CALLS: Final = 1_000_000
"""Maximum calls whose lines may still follow; beyond it the oldest counts as complete. So many need
some 300 MB; a day of ten calls a minute needs 5 MB."""


class RecordingError(ValueError):
    """A recording, or one line of it, cannot be used; the text has the line and the cause."""


MALFORMED: Final = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip
"""Exceptions of reading a document without the expected parts, including RecordingError."""


class Asked(NamedTuple):
    """A call started."""

    at: float
    call: str


class Attempted(NamedTuple):
    """A request was sent."""

    at: float
    call: str
    route: str
    latency: float
    """Seconds until the response, or until the request was abandoned."""
    reason: Reason | None = None
    """None for an image."""
    hint: float | None = None
    """Seconds the server asked to wait."""
    cost: float | None = None
    """US dollars."""
    queue: float = 0.0
    """Seconds in the queue before it was sent."""
    given_up: bool = False
    """Whether it was abandoned, by the timeout, the deadline or because the caller left."""


class Rejected(NamedTuple):
    """The breaker rejected a call."""

    at: float
    call: str
    route: str


Row: TypeAlias = "Asked | Attempted | Rejected"


def checked_route(route: str) -> str:
    """Return the route if it is valid.

    Raises:
        RecordingError: It is not provider:model in printable characters, or is too long.
    """
    provider, _, model = route.partition(":")
    if not provider or not model or " " in route or not route.isprintable():
        raise RecordingError("route is not provider:model")
    if len(route) > _LONGEST_NAME:
        raise RecordingError(f"route is longer than {_LONGEST_NAME} characters")
    return route


def as_float(value: object) -> float | None:
    """Return a number as a finite float; None if it is not a number or too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def checked(row: Row) -> Row:
    """Return the row if it is valid.

    Raises:
        RecordingError: It has no call, or one of its numbers is out of range.
    """
    if not isinstance(row.call, str) or not row.call:
        raise RecordingError("call is missing")
    if len(row.call) > _LONGEST_NAME:
        raise RecordingError(f"call is longer than {_LONGEST_NAME} characters")
    for name in _POSSIBLE if isinstance(row, Attempted) else ():
        value, (least, most) = getattr(row, name), _POSSIBLE[name]
        if value is not None and not least <= value <= most:
            wrong = "negative" if value < 0 <= least else f"not between {least:g} and {most:g}"
            raise RecordingError(f"{name} is {wrong}")
    for moment in (row.at, row.at - row.queue if isinstance(row, Attempted) else row.at):
        if not -_ROUNDING <= moment < _NO_TIME:
            raise RecordingError("the time is not in seconds since the epoch")
    return row


def to_json(row: Row) -> str:
    """Return the row as a line of our format, without the line break."""
    line: dict[str, Any]
    match row:
        case Asked():
            line = {"asked": row.at, "call": row.call}
        case Rejected():
            line = {"rejected": row.at, "call": row.call, "route": row.route}
        case Attempted():
            line = {"sent": row.at, "call": row.call, "route": row.route, "latency": row.latency}
            if row.reason is not None:
                line["reason"] = str(row.reason)
            for name in ("hint", "cost", "queue", "given_up"):
                value = getattr(row, name)
                if value is not None and value != Attempted._field_defaults[name]:
                    line[name] = value
    return json.dumps(line, separators=(",", ":"))


class RouteLog:
    """Every request to one route, in the order of sending, as columns."""

    __slots__ = ("__weakref__", "at", "cost", "given_up", "hint", "latency", "reason", "rejected")

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

    def failed(self, index: int) -> bool:
        """Return whether a request failed because of the service."""
        number = self.reason[index]
        return number != IMAGE and fails(REASONS[number])

    def sort(self, origin: float) -> None:
        """Sort all columns by time, and convert times to seconds since ``origin``."""
        order = sorted(range(len(self.at)), key=self.at.__getitem__)
        self.at = array("d", [self.at[index] - origin for index in order])
        for name in ("latency", "reason", "hint", "cost", "given_up"):
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
    routes: dict[str, RouteLog] = field(default_factory=dict)
    """Requests by provider:model; the route that calls most often tried first comes first."""
    notes: Counter[str] = field(default_factory=Counter)
    """Counts of skipped data by kind."""

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
        for name, log in self.routes.items():
            cut = part.routes[name] = RouteLog()
            low, high = bisect_left(log.at, start), bisect_left(log.at, end)
            cut.at = array("d", [at - start for at in log.at[low:high]])
            for column in ("latency", "reason", "hint", "cost", "given_up"):
                setattr(cut, column, getattr(log, column)[low:high])
            cut.rejected = array("d", [at - start for at in log.rejected if start <= at < end])
        return part


def gather(rows: Iterable[Row], notes: Counter[str] | None = None) -> Recording:
    """Build a recording from its rows, one by one.

    Args:
        rows: Rows in any order.
        notes: Counts of data that the reader skipped; the recording keeps and extends them.

    Raises:
        RecordingError: There is no request, or there are too many routes.
    """
    recording = Recording(notes=Counter() if notes is None else notes)
    calls = _Calls()
    for row in rows:
        if isinstance(row, Attempted):
            recording.routes.setdefault(row.route, RouteLog()).add(row)
            calls.note(row.call, row.at - row.queue, row.route)
        elif isinstance(row, Rejected):
            recording.routes.setdefault(row.route, RouteLog()).rejected.append(row.at)
            calls.note(row.call, row.at, row.route)
        else:
            calls.note(row.call, row.at, None)
        if len(recording.routes) > _MAX_ROUTES:
            raise RecordingError(f"the recording holds more than {_MAX_ROUTES} routes")
    if not any(len(log) for log in recording.routes.values()):
        raise RecordingError("the recording holds no request that was sent")
    recording.asked = calls.all()
    recording.origin = recording.asked[0]
    recording.asked = array("d", [at - recording.origin for at in recording.asked])
    for log in recording.routes.values():
        log.sort(recording.origin)
    first = calls.first_routes
    recording.routes = dict(
        sorted(recording.routes.items(), key=lambda item: -first.get(item[0], 0))
    )
    return recording


class _Calls:
    """The start of each call, by its earliest line. Complete calls are dropped."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[float, str | None]] = OrderedDict()
        self._asked = array("d")
        self.first_routes: Counter[str] = Counter()

    def note(self, call: str, at: float, route: str | None) -> None:
        known = self._open.get(call)
        if known is None:
            self._open[call] = (at, route)
            if len(self._open) > _MAX_OPEN_CALLS:
                self._close(*self._open.popitem(last=False)[1])
        elif at < known[0] or known[1] is None:
            self._open[call] = (min(at, known[0]), route or known[1])

    def _close(self, at: float, route: str | None) -> None:
        self._asked.append(at)
        if route is not None:
            self.first_routes[route] += 1

    def all(self) -> array[float]:
        for at, route in self._open.values():
            self._close(at, route)
        self._open.clear()
        return array("d", sorted(self._asked))
