"""Streaming JSON body: base64 images are decoded while the response arrives.

Otherwise an image of 20 MB would be in memory as pieces, as a body, as text and as bytes, and each
step would block the event loop. Decoded piece by piece, it is in memory once.
"""

from __future__ import annotations

import math
import secrets
from typing import Final

from resilient_imagen.images.base64_codec import Base64Decoder

__all__ = ["StreamingJsonBody"]

_TOKEN: Final = 32
"""Characters of a placeholder, all of them base64 characters."""


class StreamingJsonBody:
    """JSON in which short placeholders replace the decoded part of long base64 strings.

    The replacement is safe: base64 characters after a quote are always inside a JSON string, so
    substituting others keeps the document valid.

    Args:
        long: Number of characters without a quote from which on they are decoded as base64.
    """

    def __init__(self, long: int = 2**16) -> None:
        self.text: bytes = b""
        """The JSON; empty until the body is closed."""
        self._long = long
        self._read = bytearray()
        self._since_quote = -math.inf  # characters; minus infinity: not a string to decode
        self._decoder: Base64Decoder | None = None
        self._decoded: dict[str, Base64Decoder] = {}

    @property
    def size(self) -> int:
        """Bytes of the JSON so far, without decoded base64."""
        return len(self._read)

    def decoder(self, value: str) -> tuple[Base64Decoder | None, str]:
        """Return the decoder of a string in the JSON, or None, and the part not yet decoded."""
        found = self._decoded.get(value[:_TOKEN])
        return (None, value) if found is None else (found, value[_TOKEN:])

    def feed(self, part: bytes) -> None:
        """Process the next part of the body."""
        for at in range(0, len(part), self._long):
            piece = part[at : at + self._long]
            while piece:
                decoder = self._decoder
                piece = self._keep(piece) if decoder is None else self._decode(piece, decoder)

    def close(self) -> None:
        """Finish the body; sets ``text``."""
        if self._decoder is not None:
            self._give_up(self._decoder)
        self.text = bytes(self._read)
        self._read.clear()

    def _keep(self, piece: bytes) -> bytes:
        """Append a piece to the JSON; return the part of it that is to be decoded instead."""
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
        """Decode a piece up to the end of its string; return the rest, which is to be kept."""
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
