"""A recording: what was asked, sent and rejected, when, and what it met.

On disk it is JSONL, one object a line, times in seconds since the epoch, of three kinds::

    {"asked": 1764000000.0, "call": "c1"}
    {"sent": 1764000000.1, "call": "c1", "route": "google:gemini-3-pro-image", "latency": 1.2,
     "reason": "overloaded"}
    {"rejected": 1764000003.0, "call": "c2", "route": "google:gemini-3-pro-image"}

``asked``: a caller came. ``sent``: a request went out; ``reason`` is missing when it brought an
image, ``hint`` holds the seconds the server asked to wait, ``cost`` US dollars, ``queue`` seconds
of waiting before it was sent, and ``given_up`` is true when we stopped waiting for the answer
(then nobody knows what it would have been). ``rejected``: the breaker let nothing out. ``call``
holds a call's lines together, and lines may stand in any order (those of one call with up to a
million others between them).

In memory it is a handful of number columns for each route.
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
"""Stands in a column of reasons for an image."""

_LONGEST_NAME: Final = 200
"""Characters of a route's or a call's name; ours take some dozens."""
_MAX_ROUTES: Final = 1000
_NO_TIME: Final = 1e11
"""Seconds since the epoch, in the year 5138; as milliseconds it is 1973."""
_ROUNDING: Final = 1.0
"""Seconds before the epoch that a recording on a clock of its own, which began at 0, may reach."""
_POSSIBLE: Final = {
    "latency": (0.0, 1e7),
    "cost": (0.0, 1e6),
    "queue": (-1e7, 1e7),
    "hint": (-1e9, 1e9),
}
"""The least and the most of each number that is accepted."""

_MAX_OPEN_CALLS: Final = 1_000_000
"""Calls whose lines may still come; beyond it the oldest is taken as complete. They take some
300 MB then; a day of ten calls a minute, 5 MB."""


class RecordingError(ValueError):
    """A recording, or one line of it, cannot be used; the text says which line and why."""


MALFORMED: Final = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip
"""Raised by reading a document that has not the expected parts, RecordingError among them."""


class Asked(NamedTuple):
    """A caller came."""

    at: float
    call: str


class Attempted(NamedTuple):
    """A request went out."""

    at: float
    call: str
    route: str
    latency: float
    """Seconds until the answer, or until nobody waited any more."""
    reason: Reason | None = None
    """None for an image."""
    hint: float | None = None
    """Seconds the server asked to wait."""
    cost: float | None = None
    """US dollars."""
    queue: float = 0.0
    """Seconds it had waited for its turn."""
    given_up: bool = False
    """True when we stopped waiting: by our timeout, the deadline, or because the caller left."""


class Rejected(NamedTuple):
    """The breaker let nothing out."""

    at: float
    call: str
    route: str


Row: TypeAlias = "Asked | Attempted | Rejected"


def checked_route(route: str) -> str:
    """The route as it is.

    Raises:
        RecordingError: It is not provider:model, in printable characters and of usual length.
    """
    provider, _, model = route.partition(":")
    if not provider or not model or " " in route or not route.isprintable():
        raise RecordingError("route is not provider:model")
    if len(route) > _LONGEST_NAME:
        raise RecordingError(f"route is longer than {_LONGEST_NAME} characters")
    return route


def as_float(value: object) -> float | None:
    """The number as a finite float; None if it is something else, or too large for one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def checked(row: Row) -> Row:
    """The row as it is.

    Raises:
        RecordingError: It belongs to no call, or one of its numbers cannot be.
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
    """The row as one line of our own format, without the line break."""
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

    __slots__ = ("at", "cost", "given_up", "hint", "latency", "reason", "rejected")

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
        """When the breaker let nothing out."""

    def __len__(self) -> int:
        """Requests sent."""
        return len(self.at)

    def add(self, row: Attempted) -> None:
        """Note a request."""
        self.at.append(row.at)
        self.latency.append(row.latency)
        self.reason.append(IMAGE if row.reason is None else REASONS.index(row.reason))
        self.hint.append(math.nan if row.hint is None else row.hint)
        self.cost.append(math.nan if row.cost is None else row.cost)
        self.given_up.append(row.given_up)

    def failed(self, index: int) -> bool:
        """Whether a request failed for the service's sake."""
        number = self.reason[index]
        return number != IMAGE and fails(REASONS[number])

    def sort(self, origin: float) -> None:
        """Bring all into order, and count times from ``origin``."""
        order = sorted(range(len(self.at)), key=self.at.__getitem__)
        self.at = array("d", [self.at[index] - origin for index in order])
        for name in ("latency", "reason", "hint", "cost", "given_up"):
            column = getattr(self, name)
            setattr(self, name, array(column.typecode, [column[index] for index in order]))
        self.rejected = array("d", sorted(at - origin for at in self.rejected))


@dataclass(slots=True)
class Recording:
    """What happened, ready to be played again."""

    origin: float = 0.0
    """The start, in seconds since the epoch. All other times count from here."""
    asked: array[float] = field(default_factory=lambda: array("d"))
    """When each call came, in order."""
    routes: dict[str, RouteLog] = field(default_factory=dict)
    """By provider:model, the one most often asked first coming first."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was left out, and how often."""

    @property
    def duration(self) -> float:
        """Seconds from the first call to the last."""
        return self.asked[-1] if self.asked else 0.0

    @property
    def has_images(self) -> bool:
        """Whether any request in it brought one."""
        return any(IMAGE in log.reason for log in self.routes.values())

    def between(self, start: float, end: float) -> Recording:
        """The part whose calls came from ``start`` to before ``end``; times begin at 0 again.

        It keeps what was sent for them, and what was sent shortly before and after, which says
        more about the edges than nothing.
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
    """Collect the rows of one recording; they are looked at one by one.

    Args:
        rows: In any order.
        notes: What the reader left out; it is kept with the recording, and added to.

    Raises:
        RecordingError: There is no request among them, or more routes than can be.
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
    """When each call came: its earliest line says so. Complete ones are let go."""

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
