"""Base64 of pictures, in both directions, without holding up the event loop.

The standard library decodes 20 MB in one call that holds the interpreter lock, so that even in a
thread everything else stands still meanwhile. Here pydantic's decoder, several times faster, is
fed piece by piece and gives up the lock in between; `python -m benchmarks` has numbers.
"""

from __future__ import annotations

import base64
import io
import time
from functools import cache
from typing import TYPE_CHECKING, Final

from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.worker_pool import Pool, off_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Base64Decoder",
    "decode_base64",
    "decode_base64_async",
    "encode_base64",
    "encode_base64_async",
]

_TEXT_PIECE: Final = 2**18
_BYTES_PIECE: Final = _TEXT_PIECE // 4 * 3  # of whole groups, 4 characters for 3 bytes
_SMALL: Final = 2**16
"""Characters or bytes that take well under a millisecond: not worth a thread."""
_LONGEST_PREFIX: Final = 1024
"""Characters of a data URL before its comma."""
_WHITESPACE: Final = b" \t\r\n\v\f"
_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")


class Base64Decoder:
    """Decodes clean base64 that comes in pieces, at the size of what is decoded."""

    def __init__(self) -> None:
        self._decoded = io.BytesIO()
        self._rest = ""  # the last group, whole or not: only the end tells whether it is padded

    def feed(self, piece: str) -> bool:
        """Take the next characters; False, and none taken, if they are not base64."""
        text = self._rest + piece
        whole = max(0, (len(text) - 1) // 4 * 4)
        decoded = _decoder()(text[:whole])
        if decoded is None or len(decoded) != whole // 4 * 3:  # fewer: padding before the end
            return False
        self._decoded.write(decoded)
        self._rest = text[whole:]
        return True

    def finish(self) -> bytes | None:
        """All bytes, with what was fed understood to be complete; None if it cannot be."""
        last = _decoder()(self._rest)
        if last is None:
            return None
        self._rest = ""
        self._decoded.write(last)
        return self._decoded.getvalue()

    def taken(self) -> str:
        """What was fed so far, in the standard alphabet; not after finish() gave bytes."""
        return encode_base64(self._decoded.getvalue()) + self._rest


def decode_base64(text: str | bytes) -> bytes:
    """Decode base64, with the usual liberties taken by those who send it.

    Understood are a data URL, spaces and line breaks anywhere, the URL-safe alphabet (even mixed
    with the standard one) and missing padding.

    Raises:
        UnusableImageError: It is not base64. The text holds nothing of it.
    """
    body = _body(text)
    decoded = _decode_pieces(body)
    if decoded is None:
        decoded = _decode_pieces(_cleaned(body))
    if decoded is None:
        raise UnusableImageError("is not valid base64")
    return decoded


def encode_base64(data: bytes) -> str:
    """Encode in the standard alphabet, padded, on one line."""
    view = memoryview(data)
    # All of its memory at once: pieces to join, or a text that grows, leave holes in the heap that
    # are not given back (hundreds of megabytes measured after eight pictures at once).
    encoded = bytearray(-(-len(view) // 3) * 4)
    for number, at in enumerate(_yielding_gil(range(0, len(view), _BYTES_PIECE))):
        piece = base64.b64encode(view[at : at + _BYTES_PIECE])
        start = number * _TEXT_PIECE
        encoded[start : start + len(piece)] = piece
    return encoded.decode("ascii")


async def decode_base64_async(text: str | bytes) -> bytes:
    """Decode a reference as decode_base64 does; a long one in a thread, the event loop runs on.

    Raises:
        UnusableImageError: It is not base64.
    """
    if len(text) <= _SMALL:
        return decode_base64(text)
    return await off_loop(decode_base64, text, pool=Pool.REFERENCES)


async def encode_base64_async(data: bytes) -> str:
    """Do as encode_base64 does; long data are encoded in a thread, the event loop runs on."""
    return encode_base64(data) if len(data) <= _SMALL else await off_loop(encode_base64, data)


def _body(text: str | bytes) -> str:
    """Take the characters after a data URL's comma, or all of them."""
    # A decoding error would carry the whole text; letters outside ASCII fail later, silently.
    plain = text if isinstance(text, str) else str(text, "latin-1")
    start = plain[: _LONGEST_PREFIX + 1].lstrip()
    if start[:5].lower() != "data:":
        return plain
    head, comma, _ = start.partition(",")
    if not comma or not head.lower().rstrip().endswith(";base64"):
        raise UnusableImageError("is a data URL without base64 data")
    return plain[plain.index(",") + 1 :]


def _decode_pieces(text: str) -> bytes | None:
    """Decode clean base64; None if it is not."""
    decoder = Base64Decoder()
    starts = _yielding_gil(range(0, len(text), _TEXT_PIECE))
    if all(decoder.feed(text[at : at + _TEXT_PIECE]) for at in starts):
        return decoder.finish()
    return None


def _cleaned(text: str) -> str:
    """Leave out white space and excess padding, and settle on one alphabet."""
    if not text.isascii():
        return text
    starts = _yielding_gil(range(0, len(text), _TEXT_PIECE))
    pieces = (text[at : at + _TEXT_PIECE].encode("ascii") for at in starts)
    plain = b"".join(piece.translate(_TO_STANDARD, _WHITESPACE) for piece in pieces)
    return plain.rstrip(b"=").decode("ascii")


def _yielding_gil(steps: range) -> Iterator[int]:
    """Give the steps one by one, letting other threads have the interpreter lock in between."""
    for number, step in enumerate(steps):
        if number:
            time.sleep(0)
        yield step


@cache
def _decoder() -> Callable[[str], bytes | None]:
    """Build pydantic's base64 decoder: the import is paid for on first use only."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    adapter = TypeAdapter(bytes, config=ConfigDict(val_json_bytes="base64"))

    def decode(text: str) -> bytes | None:
        if not text.isascii():
            return None
        try:
            return adapter.validate_python(text)
        except ValidationError:  # it holds the text: it must not become anyone's context
            return None

    return decode
