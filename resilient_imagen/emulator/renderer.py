"""Image renderer: drawn, tiny or given images, cached and rendered off the event loop."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Literal

from resilient_imagen.emulator.vendor_api import Picture

if TYPE_CHECKING:
    from resilient_imagen.emulator.vendor_api import ImageSize, ParsedRequest

__all__ = ["ImageRenderer", "PictureMode", "sniff"]

PictureMode = Literal["drawn", "tiny"] | bytes
"""``drawn``: shows the request, in the requested size. ``tiny``: one colour, a sixteenth of the
size in the same ratio. bytes: sent unchanged (only several images in one response differ)."""

_KEPT: Final = 32 * 1024 * 1024
"""Maximum bytes of cached images, besides the last one."""
_SHRINK: Final = 16
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
)


def sniff(data: bytes) -> str | None:
    """Return the type of an encoded image by its first bytes; None if it is unknown."""
    for magic, mime in _MAGIC:
        if data.startswith(magic):
            return mime
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "image/heic"
    return None


class ImageRenderer:
    """Renders the images of one emulator and caches the last ones."""

    def __init__(self, mode: PictureMode) -> None:
        if not isinstance(mode, bytes) and mode not in ("drawn", "tiny"):
            raise ValueError("picture must be 'drawn', 'tiny' or the bytes of a picture")
        self.mode: PictureMode = mode
        self._made: OrderedDict[tuple[object, ...], Picture] = OrderedDict()

    async def render(
        self, vendor: str, call: ParsedRequest, canvas: ImageSize, variant: int
    ) -> Picture:
        """Return an image; ``variant`` distinguishes several images of one response."""
        mode = self.mode
        key = _identity(mode, vendor, call, canvas, variant)
        if key not in self._made:
            self._made[key] = await self._make(mode, vendor, call, canvas, variant)
            self._forget_oldest()
        self._made.move_to_end(key)
        return self._made[key]

    def _forget_oldest(self) -> None:
        held = sum(len(picture.data) for picture in self._made.values())
        while held > _KEPT and len(self._made) > 1:
            _, oldest = self._made.popitem(last=False)
            held -= len(oldest.data)

    async def _make(
        self, mode: PictureMode, vendor: str, call: ParsedRequest, canvas: ImageSize, variant: int
    ) -> Picture:
        if isinstance(mode, bytes):
            return Picture(mode + b"\0" * variant, sniff(mode) or canvas.mime_type)
        from resilient_imagen.emulator import drawing

        if mode == "tiny":
            size = (max(1, canvas.width // _SHRINK), max(1, canvas.height // _SHRINK))
            return Picture(drawing.flat(size, vendor, canvas, variant), canvas.mime_type)
        data = await asyncio.to_thread(drawing.draw, vendor, call, canvas, variant)
        return Picture(data, canvas.mime_type)


def _identity(
    mode: PictureMode, vendor: str, call: ParsedRequest, canvas: ImageSize, variant: int
) -> tuple[object, ...]:
    if isinstance(mode, bytes):
        return (id(mode), variant)
    if mode == "tiny":
        return (mode, vendor, canvas, variant)
    seen = hashlib.blake2b()
    for reference in call.references:
        seen.update(reference.data)
    return (mode, vendor, call.model, call.prompt, canvas, seen.digest(), variant)
