"""Server-Sent Events: split a response into events while it arrives.

The data of each event is a StreamingJsonBody, so that an image inside it is in memory once.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from resilient_imagen.providers.streaming_body import StreamingJsonBody

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilient_imagen.providers.base import ProviderResult

__all__ = ["EventReader", "EventStream", "ServerSentEvent"]

_LINE_END: Final = re.compile(rb"[\r\n]")
_CARRIAGE_RETURN: Final = 13
_MAX_NAME: Final = 256
"""Bytes of a field's name, and of an event's name, that are kept."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of a stream."""

    name: str
    """The ``event`` field; empty if there is none."""
    data: StreamingJsonBody = field(repr=False)
    """The ``data`` fields, complete."""


class EventReader(Protocol):
    """Receives the events of one response and makes a result of them."""

    def begin(self) -> None:
        """Note that the headers of the response have arrived, whatever its status."""
        ...

    def add(self, event: ServerSentEvent) -> bool:
        """Receive the next event; return whether the rest of the stream is not needed."""
        ...

    @property
    def has_images(self) -> bool:
        """Whether at least one complete image has arrived."""
        ...

    def result(self) -> ProviderResult:
        """Return the images that have arrived.

        Raises:
            ResponseError: The stream has no image, or reported an error before the first one.
        """
        ...


class EventStream:
    """An incremental parser of the ``text/event-stream`` format.

    Lines may end with CR, LF or both. Comments, fields other than ``event`` and ``data``, and
    events without data are ignored. Unlike browsers, it keeps an event that the end of the stream
    completes instead of an empty line: its image has been paid for.
    """

    def __init__(self) -> None:
        self._skip_line_feed = False
        self._head = bytearray()  # of the line, up to its colon
        self._field: bytes | None = None  # of the line, once its colon has been read
        self._value_begins = False
        self._name = bytearray()
        self._data: StreamingJsonBody | None = None

    @property
    def size(self) -> int:
        """Bytes of the current event so far, without decoded base64."""
        return 0 if self._data is None else self._data.size

    def feed(self, part: bytes) -> Iterator[ServerSentEvent]:
        """Process the next part of the response, and yield the events that it completes."""
        at = 0
        while at < len(part):
            if self._skip_line_feed:
                self._skip_line_feed = False
                if part.startswith(b"\n", at):
                    at += 1
                    continue
            found = _LINE_END.search(part, at)
            end = len(part) if found is None else found.start()
            self._take(part[at:end])
            at = end + 1
            if found is not None:
                self._skip_line_feed = part[end] == _CARRIAGE_RETURN
                if (event := self._end_line()) is not None:
                    yield event

    def close(self) -> ServerSentEvent | None:
        """Finish the stream; return the event that no empty line has completed, if there is one."""
        self._end_line()
        return self._dispatch()

    def _take(self, piece: bytes) -> None:
        """Process a piece of a line."""
        if self._field is None:
            self._head += piece
            name, colon, piece = bytes(self._head).partition(b":")
            if not colon and len(name) <= _MAX_NAME:
                return
            self._begin_value(name.removeprefix(codecs.BOM_UTF8) if colon else b"")
        if self._value_begins and piece:
            self._value_begins = False
            piece = piece.removeprefix(b" ")
        if self._field == b"data" and self._data is not None:
            self._data.feed(piece)
        elif self._field == b"event":
            self._name += piece[: _MAX_NAME - len(self._name)]

    def _begin_value(self, name: bytes) -> None:
        self._field, self._value_begins = name, True
        self._head.clear()
        if name == b"event":
            self._name.clear()
        elif name == b"data":
            if self._data is None:
                self._data = StreamingJsonBody()
            else:
                self._data.feed(b"\n")

    def _end_line(self) -> ServerSentEvent | None:
        """End a line; return the event if the line is empty."""
        empty = self._field is None and not self._head
        self._field = None
        self._head.clear()
        return self._dispatch() if empty else None

    def _dispatch(self) -> ServerSentEvent | None:
        name, data = self._name.decode(errors="replace"), self._data
        self._name.clear()
        self._data = None
        if data is None:
            return None
        data.close()
        return ServerSentEvent(name, data) if data.text else None
