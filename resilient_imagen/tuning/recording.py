"""Recording: calls, requests and rejections with their times and outcomes.

On disk it is JSONL, one object a line, times in seconds since the epoch, of three kinds::

    {"asked": 1764000000.0, "call": "c1"}
    {"sent": 1764000000.1, "call": "c1", "route": "google:gemini-3-pro-image", "latency": 1.2,
     "reason": "overloaded"}
    {"rejected": 1764000003.0, "call": "c2", "route": "google:gemini-3-pro-image"}

``asked``: a call started; of a call that ended, ``took`` has the seconds, ``outcome`` the word
(success, error, deadline or cancelled) and ``served`` the route that delivered the image.
``sent``: a request was sent; ``reason`` is absent if it delivered an image, ``hint`` is the wait
that the server asked for, in seconds, ``cost`` is in US dollars, ``queue`` is the wait before
sending in seconds, ``given_up`` is true if the request was abandoned, so that its outcome is
unknown, and ``probe`` is true for a probe of a half-open breaker. ``rejected``: the breaker
rejected the call. ``call`` identifies the lines of one call. Lines may be in any order (with up to
100,000 other calls between the lines of one call). A line about settings has those in effect from
then on, and the client that used them::

    {"configured": 1764000000.0, "client": "c0ffee", "settings": "IMAGE_GEN_IPM=10 …"}

In memory it consists of a few number columns for the calls and for each route.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from resilient_imagen.effective_settings import read_text
from resilient_imagen.reasons import Reason
from resilient_imagen.tuning.outcome_model import fails

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "LEFT",
    "LOST",
    "MALFORMED",
    "Asked",
    "Attempted",
    "Configured",
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

LOST: Final = -1
"""In place of a route's index, for a call without an image."""
LEFT: Final = -2
"""In place of a route's index, for a call whose caller left."""
_OUTCOMES: Final = {"error": LOST, "deadline": LOST, "cancelled": LEFT}

_LONGEST_NAME: Final = 200
"""Maximum characters of the name of a route or a call; ours have some dozens."""
_MAX_ROUTES: Final = 1000
_NO_TIME: Final = 1e11
"""Seconds since the epoch, in the year 5138: later times are in milliseconds (from 1973 on)."""
_ROUNDING: Final = 1.0
"""Seconds before the epoch that are accepted, for a recording whose clock began at 0."""
_HOUR: Final = 3600.0
_POSSIBLE: Final = {
    "latency": 1e4, "cost": 1e4, "queue": 24 * _HOUR, "hint": 1e9, "took": 48 * _HOUR,
}  # fmt: skip
"""Maximum of each number. A larger one is no believable image, wait or bill."""
_UNITS: Final = {
    "latency": "seconds", "cost": "US dollars", "queue": "seconds", "hint": "seconds",
    "took": "seconds",
}  # fmt: skip

_MAX_OPEN_CALLS: Final = 100_000
"""Maximum calls whose lines may still follow; beyond it the oldest counts as complete. It bounds
the memory: so many need some 50 MB, and are made in a week of ten calls a minute."""
_MAX_SETTINGS: Final = 10_000
"""Maximum characters of the settings of one line; ours have a thousand."""


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
    took: float | None = None
    """Seconds until it ended; None if that is not known."""
    outcome: str | None = None
    """success, error, deadline or cancelled; None if it is not known."""
    served: str | None = None
    """The route that delivered the image."""


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
    probe: bool = False
    """Whether it was a probe of a half-open breaker."""


class Rejected(NamedTuple):
    """The breaker rejected a call."""

    at: float
    call: str
    route: str


class Configured(NamedTuple):
    """Settings came into effect, or were still in effect."""

    at: float
    client: str
    """Identifies the client among those of one recording; empty if that is not known."""
    settings: str
    """NAME=VALUE, separated by spaces."""


Row: TypeAlias = "Asked | Attempted | Rejected | Configured"


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
    if isinstance(row, Configured):
        return _checked_settings(row)
    if not isinstance(row.call, str) or not row.call:
        raise RecordingError("call is missing")
    if len(row.call) > _LONGEST_NAME:
        raise RecordingError(f"call is longer than {_LONGEST_NAME} characters")
    _check_time(row.at)
    for name in _NUMBERS[type(row)]:
        value, most = getattr(row, name), _POSSIBLE[name]
        if value is not None and value < 0:
            raise RecordingError(f"{name} is negative ({value:g}); it is in {_UNITS[name]}")
        if value is not None and value > most:
            unit = _UNITS[name]
            advice = "; is it in milliseconds?" if unit == "seconds" else ""
            raise RecordingError(f"{name} is {value:g}, more than {most:g} {unit}{advice}")
    if isinstance(row, Attempted):
        _check_time(row.at - row.queue)
    return row


def _check_time(at: float) -> None:
    if not -_ROUNDING <= at < _NO_TIME:
        raise RecordingError(f"the time {at:g} is not in seconds since the epoch")


def _checked_settings(row: Configured) -> Configured:
    _check_time(row.at)
    if len(row.settings) > _MAX_SETTINGS or len(row.client) > _LONGEST_NAME:
        raise RecordingError("settings or client are too long")
    try:
        read_text(row.settings)
    except ValueError as error:
        raise RecordingError(str(error)) from None
    return row


_NUMBERS: Final[Mapping[type, tuple[str, ...]]] = {
    Asked: ("took",),
    Attempted: ("latency", "cost", "queue", "hint"),
    Rejected: (),
}


def to_json(row: Row) -> str:
    """Return the row as a line of our format, without the line break."""
    line: dict[str, Any]
    match row:
        case Asked():
            line = {"asked": row.at, "call": row.call}
            _put_given(line, row, ("took", "outcome", "served"))
        case Configured():
            line = {"configured": row.at, "client": row.client, "settings": row.settings}
        case Rejected():
            line = {"rejected": row.at, "call": row.call, "route": row.route}
        case Attempted():
            line = {"sent": row.at, "call": row.call, "route": row.route, "latency": row.latency}
            if row.reason is not None:
                line["reason"] = str(row.reason)
            _put_given(line, row, ("hint", "cost", "queue", "given_up", "probe"))
    return json.dumps(line, separators=(",", ":"))


def _put_given(line: dict[str, Any], row: Asked | Attempted, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(row, name)
        if value is not None and value != row._field_defaults[name]:
            line[name] = value


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
