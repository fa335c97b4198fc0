"""Rows of a recording: calls, requests, rejections and settings, each with its time.

On disk a recording is JSONL, one object a line, times in seconds since the epoch, of three kinds::

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
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from resilient_imagen.effective_settings import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from resilient_imagen.reasons import Reason

__all__ = [
    "MALFORMED",
    "Asked",
    "Attempted",
    "Configured",
    "RecordingError",
    "Rejected",
    "Row",
    "as_float",
    "checked",
    "checked_route",
    "to_json",
]

_LONGEST_NAME: Final = 200
"""Maximum characters of the name of a route or a call; ours have some dozens."""
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
