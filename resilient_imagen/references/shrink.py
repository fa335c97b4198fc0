"""Reference shrinking: reduce the size of references until they fit into a request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from resilient_imagen.images.codec import (
    apply_exif_orientation,
    encode,
    open_picture,
    pillow_errors,
    to_supported_mode,
)
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.limits import ImageLimits
from resilient_imagen.images.worker_pool import off_loop, pool_for
from resilient_imagen.request import Reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

__all__ = ["shrink_to_total"]

_QUALITY: Final = 92
_SMALLER: Final = 0.75
"""Factor by which each step scales the sides of the previous step."""
_SMALLEST_SIDE: Final = 512
"""Minimum pixels of the longer side; a smaller reference is of little use."""
_OPAQUE: Final = 255


@dataclass(slots=True)
class _Shrinking:
    """A reference and its reduced form. Each step encodes the original, so quality is lost once."""

    original: Reference
    max_pixels: int
    now: Reference = field(init=False)
    step: int = 0
    exhausted: bool = False

    def __post_init__(self) -> None:
        self.now = self.original

    @property
    def size(self) -> int:
        return len(self.now.data)

    async def shrink(self) -> None:
        """Take the next step: first encode as JPEG at full size, then with fewer pixels."""
        source = self.original
        step, self.step = self.step, self.step + 1
        try:
            work = partial(_reencoded, source.data, _SMALLER**step, self.max_pixels)
            smaller = await off_loop(work, pool=pool_for(source.data))
        except UnusableImageError:
            smaller = None
        if smaller is None:
            self.exhausted = True
        elif len(smaller[0]) < self.size:
            self.now = Reference(*smaller, source.index)

    def note(self) -> str | None:
        """Describe the change in a sentence; None if the reference is unchanged."""
        if self.now is self.original:
            return None
        before, after = (_megabytes(len(item.data)) for item in (self.original, self.now))
        return f"reference {self.now.index} made smaller for its size: {before} to {after}"


async def shrink_to_total(
    references: Sequence[Reference],
    max_total_bytes: int,
    *,
    max_bytes: int | None = None,
    limits: ImageLimits | None = None,
) -> tuple[tuple[Reference, ...], tuple[str, ...]]:
    """Make references smaller, the largest first, until each fits and all together fit.

    A reference is first encoded as JPEG of quality 92 (PNG if it is transparent) at full size. If
    that is not enough, its sides are repeatedly reduced to three quarters, again the largest
    reference first, down to 512 pixels. References that need no change stay the same objects.

    Args:
        references: Normalized images.
        max_total_bytes: Maximum bytes of all references together, before base64.
        max_bytes: Maximum bytes of each reference; None for no such maximum.
        limits: Its ``max_pixels`` bounds the images that are decoded here.

    Returns:
        The references in their order, a note for each changed one, and a note if they do not fit.
    """
    max_pixels = (limits or ImageLimits()).max_pixels
    items = [_Shrinking(reference, max_pixels) for reference in references]
    most = max_total_bytes if max_bytes is None else max_bytes
    while batch := _too_large(items, most) or _next_batch(items, max_total_bytes):
        await asyncio.gather(*(item.shrink() for item in batch))
    notes = [note for item in items if (note := item.note())]
    total = sum(item.size for item in items)
    if total > max_total_bytes:
        notes.append(f"references still have {_megabytes(total)}, over the limit")
    return tuple(item.now for item in items), tuple(notes)


def _too_large(items: list[_Shrinking], max_bytes: int) -> list[_Shrinking]:
    """Return the references that exceed the maximum for each reference."""
    return [item for item in items if item.size > max_bytes and not item.exhausted]


def _next_batch(items: list[_Shrinking], max_total_bytes: int) -> list[_Shrinking]:
    """Return the fewest largest references that could remove the excess if reduced to nothing.

    All of them must shrink in any case, so they can be shrunk concurrently.
    """
    excess = sum(item.size for item in items) - max_total_bytes
    left = [item for item in items if not item.exhausted]
    full_size = [item for item in left if item.step == 0]
    batch = []
    for item in sorted(full_size or left, key=lambda item: item.size, reverse=True):
        if excess <= 0:
            break
        batch.append(item)
        excess -= item.size
    return batch


def _reencoded(data: bytes, scale: float, max_pixels: int) -> tuple[bytes, str] | None:
    """Encode an image with scaled sides; None if the result would be too small to be useful."""
    picture = open_picture(data, max_pixels)
    if scale < 1 and max(picture.size) * scale < _SMALLEST_SIDE:
        return None
    with pillow_errors():
        small = _scaled(
            _without_idle_alpha(to_supported_mode(apply_exif_orientation(picture))), scale
        )
        mime = "image/png" if small.mode == "RGBA" else "image/jpeg"
        return encode(small, mime, quality=_QUALITY), mime


def _scaled(picture: Image, scale: float) -> Image:
    from PIL.Image import Resampling

    if scale == 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Resampling.LANCZOS, reducing_gap=3.0)


def _without_idle_alpha(picture: Image) -> Image:
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (_OPAQUE, _OPAQUE):
        return picture.convert("RGB")
    return picture


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
