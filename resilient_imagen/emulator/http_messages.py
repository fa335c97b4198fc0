"""One HTTP exchange as plain values: what came in, what goes out and how its bytes are sent."""

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
"""Bytes handed to the socket at a time: other connections get their turn in between."""
_DRIPS: Final = 20
"""Pieces of a body that trickles."""
_WORTH_A_THREAD: Final = 1 << 18
"""Bytes above which parsing and encoding would be felt by everything else on the loop."""

_DEEPEST: Final = 100
"""Levels of nesting that JSON may have: Gemini's own parser takes no more."""

_MARK: Final = secrets.token_hex()
"""Stands for a Verbatim while the rest is encoded."""

_T = TypeVar("_T")


class ConnectionLost(Exception):  # noqa: N818 - an event on the wire, not an error of the emulator
    """The exchange ends here and the connection is closed.

    ``abrupt`` says how: reset (RST), or closed in good order (FIN) but too early.
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
    """Names in lower case. They hold the key, so they are never shown or kept."""
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a body travels."""

    cut_at: float | None = None
    """Share of the promised body after which the connection is closed; None sends all of it."""
    abrupt: bool = False
    """Whether a cut resets the connection instead of closing it."""
    seconds: float = 0.0
    """Time over which the body trickles."""


WHOLE: Final = Delivery()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer ready to be sent."""

    status: int
    body: bytes = field(repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    delivery: Delivery = WHOLE

    def all_headers(self) -> list[tuple[str, str]]:
        """The headers to send; content-length promises the whole body, cut or not."""
        return [*self.headers, ("content-length", str(len(self.body)))]


@dataclass(frozen=True, slots=True)
class RawJson:
    """A long string of plain ASCII inside a JSON body, already encoded.

    The standard encoder looks at every character of a picture, and holds the interpreter's lock
    for the tenths of a second that twenty megabytes take; this one is copied.
    """

    data: bytes = field(repr=False)


def _encode(body: Any) -> bytes:
    copied: list[bytes] = []

    def mark(value: object) -> str:
        if not isinstance(value, RawJson):
            raise TypeError(f"{type(value).__name__} is no JSON value")
        copied.append(value.data)
        return _MARK

    first, *rest = json.dumps(body, default=mark).encode().split(_MARK.encode())
    return b"".join([first, *itertools.chain(*zip(copied, rest, strict=True))])


def json_reply(body: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """Encode ``body`` as a JSON answer."""
    kind = (("content-type", "application/json; charset=UTF-8"),)
    return Reply(status, _encode(body), (*kind, *headers))


def read_json(body: bytes) -> Any:
    """Decode a JSON body.

    Raises:
        ValueError: It is not JSON, or is nested deeper than vendors accept.
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
    """The body as its delivery sends it, piece by piece.

    Raises:
        ConnectionLost: After the last byte that a cut body sends.
    """
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


async def offload(size: int, work: Callable[..., _T], *args: Any) -> _T:
    """Do ``work(*args)`` on ``size`` bytes: at once when small, in a thread when large."""
    if size < _WORTH_A_THREAD:
        return work(*args)
    return await asyncio.to_thread(work, *args)
