"""Makes references smaller until a request may carry them all."""

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
"""Each step's sides, as a share of those of the step before."""
_SMALLEST_SIDE: Final = 512
"""Pixels that the longer side keeps; a reference smaller than that shows too little."""
_OPAQUE: Final = 255


@dataclass(slots=True)
class _Shrinking:
    """One reference on its way down; every step starts from the original, losing only once."""

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
        """Take the next step: first anew as JPEG at full size, then ever fewer pixels."""
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
        """Say what became of it, in words; None if it is as it was."""
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
    """Make references smaller, the largest first, until together they fit, and each of them does.

    Each is first encoded as JPEG of quality 92 (PNG where it is transparent), all its pixels kept.
    Only when that was done to all that could help, sides are reduced to three quarters, again the
    largest first, down to 512 pixels. References that need not change stay the same objects.

    Args:
        references: Pictures that mend has passed.
        max_total_bytes: The most that all of them together may have, as bytes before base64.
        max_bytes: The most that each of them may have; None for no other bound.
        limits: Of these, how many pixels a picture may have to be decoded here.

    Returns:
        The references in their order, and a note for each one changed, or for failing to fit.
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
    """Those that must shrink whatever the others do."""
    return [item for item in items if item.size > max_bytes and not item.exhausted]


def _next_batch(items: list[_Shrinking], max_total_bytes: int) -> list[_Shrinking]:
    """Choose the largest that must shrink even if each came down to nothing: no more than needed.

    They can be worked on side by side; whether that was enough is seen afterwards.
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
    """Encode anew at a share of the sides; None if that would be too small to be of use."""
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
