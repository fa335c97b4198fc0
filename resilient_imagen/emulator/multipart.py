"""Multipart forms: parse multipart/form-data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

__all__ = ["Part", "read_form"]


_MAX_PARTS: Final = 1000
"""Maximum fields of a form; real forms have some thirty."""
_MAX_HEADER: Final = 16_384
"""Maximum bytes of a part's header line, and of all its header lines."""


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a form, in the order sent."""

    name: str
    filename: str | None
    """None for a plain field."""
    mime_type: str
    data: bytes = field(repr=False)

    def text(self) -> str:
        """Return the content of a plain field."""
        return self.data.decode("utf-8", "replace")


def read_form(content_type: str, body: bytes) -> list[Part] | None:
    """Return the parts of a multipart/form-data body.

    Return None if the body is incomplete, or has too many parts or too long headers.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        return None
    collector = _Collector()
    try:
        parser = python_multipart.MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError:
        return None
    return collector.parts if collector.complete else None


class _Collector:
    """Collects parts from the parser's callbacks."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.complete = False
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._name = bytearray()
        self._value = bytearray()
        self._data = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda *piece: self._add_to_header(self._name, *piece),
            "on_header_value": lambda *piece: self._add_to_header(self._value, *piece),
            "on_header_end": self._header,
            "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.parts) == _MAX_PARTS:
            raise FormParserError("too many parts")
        self._headers = {}
        self._header_bytes = 0
        self._data = bytearray()

    def _add_to_header(self, text: bytearray, data: bytes, start: int, end: int) -> None:
        self._header_bytes += end - start
        if self._header_bytes > _MAX_HEADER:
            raise FormParserError("too long a header")
        text.extend(data[start:end])

    def _header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        filename = options.get(b"filename")
        self.parts.append(
            Part(
                name=options.get(b"name", b"").decode("utf-8", "replace"),
                filename=None if filename is None else filename.decode("utf-8", "replace"),
                mime_type=self._headers.get(b"content-type", b"text/plain").decode("latin-1"),
                data=bytes(self._data),
            )
        )

    def _finish(self) -> None:
        self.complete = True
