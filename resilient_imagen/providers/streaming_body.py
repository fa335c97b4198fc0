"""The body of an answer, taken in as it arrives, its pictures decoded on the way.

A picture of 20 MB would be held as pieces, as a body, as text and as bytes, and every step would
keep the event loop waiting. Decoded piece by piece, it is never held but once.
"""

from __future__ import annotations

import math
import secrets
from typing import Final

from resilient_imagen.images.base64_codec import Base64Decoder

__all__ = ["StreamingJsonBody"]

_TOKEN: Final = 32
"""Characters of a stand-in, all of them among base64's."""


class StreamingJsonBody:
    """A JSON text in which short stand-ins may begin where long base64 strings began.

    Nothing is lost or mistaken by that: base64's letters right behind a quote are a string, or part
    of one, whatever came before, and other such letters in their place leave the JSON what it was.

    Args:
        long: Characters without a quote from which on they are tried as base64.
    """

    def __init__(self, long: int = 2**16) -> None:
        self.text: bytes = b""
        """The JSON; empty until the body is closed."""
        self._long = long
        self._read = bytearray()
        self._since_quote = -math.inf  # characters; minus infinity: no string worth a try
        self._decoder: Base64Decoder | None = None
        self._decoded: dict[str, Base64Decoder] = {}

    @property
    def size(self) -> int:
        """Bytes of the JSON so far, without what was decoded."""
        return len(self._read)

    def decoder(self, value: str) -> tuple[Base64Decoder | None, str]:
        """What was decoded already of a string in the JSON, if anything, and what is left of it."""
        found = self._decoded.get(value[:_TOKEN])
        return (None, value) if found is None else (found, value[_TOKEN:])

    def feed(self, part: bytes) -> None:
        """Take in what arrived."""
        for at in range(0, len(part), self._long):
            piece = part[at : at + self._long]
            while piece:
                decoder = self._decoder
                piece = self._keep(piece) if decoder is None else self._decode(piece, decoder)

    def close(self) -> None:
        """Nothing more will come."""
        if self._decoder is not None:
            self._give_up(self._decoder)
        self.text = bytes(self._read)
        self._read.clear()

    def _keep(self, piece: bytes) -> bytes:
        """Keep a piece as it is; gives back what is to be decoded instead."""
        self._read += piece
        quote = piece.rfind(b'"')
        self._since_quote = self._since_quote + len(piece) if quote < 0 else len(piece) - quote - 1
        if self._since_quote < self._long:
            return b""
        start = len(self._read) - int(self._since_quote)
        self._since_quote = -math.inf
        string = bytes(self._read[start:])
        if b"\\" in string:
            return b""
        del self._read[start:]
        self._decoder = Base64Decoder()
        return string

    def _decode(self, piece: bytes, decoder: Base64Decoder) -> bytes:
        """Decode a piece as far as its string goes; gives back what is to be kept."""
        ends = (end for end in (piece.find(b'"'), piece.find(b"\\")) if end >= 0)
        end = min(ends, default=len(piece))
        if not decoder.feed(str(piece[:end], "latin-1")):
            self._give_up(decoder)
            return piece
        if end < len(piece):
            token = secrets.token_hex(_TOKEN // 2)
            self._decoded[token] = decoder
            self._read += token.encode()
            self._decoder = None
        return piece[end:]

    def _give_up(self, decoder: Base64Decoder) -> None:
        self._read += decoder.taken().encode()
        self._decoder = None
