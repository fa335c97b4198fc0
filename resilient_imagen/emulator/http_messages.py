"""HTTP messages as values: requests, responses and the delivery of a response's body."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

__all__ = [
    "WHOLE",
    "ConnectionLost",
    "Delivery",
    "HttpRequest",
    "RawJson",
    "Reply",
    "json_reply",
    "offload",
    "pieces",
    "read_json",
]

_PIECE: Final = 1 << 18
"""Bytes written to the socket at a time, so that other connections are served in between."""
_DRIPS: Final = 20
"""Number of pieces of a body that is sent slowly."""
_WORTH_A_THREAD: Final = 1 << 18
"""Bytes above which parsing and encoding would block the loop noticeably."""

_DEEPEST: Final = 100
"""Maximum nesting of JSON, as in Gemini's parser."""

_MARK: Final = secrets.token_hex()
"""Placeholder for a RawJson while the rest is encoded."""

_T = TypeVar("_T")


class ConnectionLost(Exception):  # noqa: N818 - an event on the wire, not an error of the emulator
    """The exchange ends here and the connection is closed.

    ``abrupt`` means a reset (RST); otherwise the connection is closed properly (FIN), but early.
    """

    def __init__(self, *, abrupt: bool) -> None:
        super().__init__("reset" if abrupt else "closed early")
        self.abrupt = abrupt


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A complete request, as received."""

    method: str
    path: str
    """Without the query."""
    headers: Mapping[str, str] = field(repr=False)
    """Headers with names in lower case. They contain the key, so they are never shown or kept."""
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a body is sent."""

    cut_at: float | None = None
    """Share of the promised body after which the connection is closed; None sends all of it."""
    abrupt: bool = False
    """Whether a cut resets the connection instead of closing it."""
    seconds: float = 0.0
    """Seconds over which the body is sent."""
    events: int | None = None
    """Events of an event stream after which the connection is closed; None sends all of them."""
    stalls: bool = False
    """Whether the connection stays open and silent after ``events``, instead of being closed."""


WHOLE: Final = Delivery()


@dataclass(frozen=True, slots=True)
class Reply:
    """A response ready to be sent."""

    status: int
    body: bytes = field(repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    delivery: Delivery = WHOLE
    events: tuple[bytes, ...] | None = field(default=None, repr=False)
    """The events of an event stream, which are sent one by one instead of ``body``."""

    def all_headers(self) -> list[tuple[str, str]]:
        """Return the headers to send; Content-Length is that of the whole body, even if cut."""
        if self.events is not None:
            return [*self.headers, ("transfer-encoding", "chunked")]
        return [*self.headers, ("content-length", str(len(self.body)))]


@dataclass(frozen=True, slots=True)
class RawJson:
    """A long ASCII string inside a JSON body, already encoded.

    The standard encoder checks every character of an image, and holds the interpreter lock for the
    tenths of a second that twenty megabytes take; this string is only copied.
    """

    data: bytes = field(repr=False)


def _encode(body: Any) -> bytes:
    copied: list[bytes] = []

    def mark(value: object) -> str:
        if not isinstance(value, RawJson):
            raise TypeError(f"{type(value).__name__} is not a JSON value")
        copied.append(value.data)
        return _MARK

    first, *rest = json.dumps(body, default=mark).encode().split(_MARK.encode())
    return b"".join([first, *itertools.chain(*zip(copied, rest, strict=True))])


def json_reply(body: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """Encode ``body`` as a JSON response."""
    kind = (("content-type", "application/json; charset=UTF-8"),)
    return Reply(status, _encode(body), (*kind, *headers))


def read_json(body: bytes) -> Any:
    """Decode a JSON body.

    Raises:
        ValueError: The body is not JSON, or is nested deeper than vendors accept.
    """
    try:
        document = json.loads(body)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level = [document]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _containers_in(outer)]
        if not level:
            return document
    raise ValueError("nested too deep")


def _containers_in(value: Any) -> list[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in inside if isinstance(each, dict | list)]


async def pieces(reply: Reply) -> AsyncIterator[bytes]:
    """Yield the pieces of the body, as its delivery sends them.

    Raises:
        ConnectionLost: After the last piece of a body that is cut.
    """
    if reply.events is not None:
        async for event in _stream(reply.events, reply.delivery):
            yield event
        return
    delivery = reply.delivery
    total = len(reply.body)
    end = total if delivery.cut_at is None else int(total * delivery.cut_at)
    step = max(1, -(-end // _DRIPS)) if delivery.seconds else _PIECE
    pause = delivery.seconds / max(1, -(-end // step))
    for start in range(0, end, step):
        if pause:
            await asyncio.sleep(pause)
        yield reply.body[start : min(start + step, end)]
    if delivery.cut_at is not None:
        raise ConnectionLost(abrupt=delivery.abrupt)


async def _stream(events: tuple[bytes, ...], delivery: Delivery) -> AsyncIterator[bytes]:
    """Yield events, the last one when the seconds of the delivery are over."""
    if delivery.cut_at is not None:  # a share of all bytes: within an event
        whole = b"".join(events)
        events = (whole[: int(len(whole) * delivery.cut_at)],)
    sent = events if delivery.events is None else events[: delivery.events]
    for event in sent:
        if delivery.seconds:
            await asyncio.sleep(delivery.seconds / len(events))
        yield event
    if delivery.stalls:
        await asyncio.get_running_loop().create_future()
    if delivery.cut_at is not None or delivery.events is not None:
        raise ConnectionLost(abrupt=delivery.abrupt)


async def offload(size: int, work: Callable[..., _T], *args: Any) -> _T:
    """Run ``work(*args)``, in a thread if ``size`` bytes are large."""
    if size < _WORTH_A_THREAD:
        return work(*args)
    return await asyncio.to_thread(work, *args)
