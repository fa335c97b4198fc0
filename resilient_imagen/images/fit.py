"""Makes a delivered picture have the aspect ratio that was asked for.

Providers deliver the nearest size they have, and sometimes ignore the ratio altogether; the picture
may be the first frame of a video, so the ratio matters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import TYPE_CHECKING, Final, Literal

from resilient_imagen.images.codec import (
    apply_exif_orientation,
    crop,
    encode,
    encoder_settings_of,
    open_picture,
    pillow_errors,
    shown_size,
    to_supported_mode,
)
from resilient_imagen.images.decodable import is_multi_scan
from resilient_imagen.images.inspect import jpeg_segments, pixel_size, sniff_mime
from resilient_imagen.images.limits import MAX_SIDE, ImageLimits
from resilient_imagen.images.worker_pool import off_loop

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FitMode", "Fitted", "fit"]

FitMode = Literal["crop", "pad", "none", "exact"]
Size = tuple[int, int]

_TOLERANCE_PERCENT: Final = 2
_KEPT_TYPES: Final = frozenset(("image/png", "image/jpeg", "image/webp"))
_BACKDROP_SIDE: Final = 64
"""Pixels of the longer side of the picture that is blown up to a backdrop: small is quick."""
_BACKDROP_BLUR: Final = 3
_GLANCE: Final = 2**16
"""Bytes in which a PNG's turn would be noted."""
_JPEG_APP1: Final = 0xE1
"""The segment in which a JPEG's turn would be noted."""
_LONGEST_SIDE: Final = 16_383
"""Pixels; the most that WebP can hold, and more than any video wants."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A picture of the ratio asked for, or as near to it as the mode allows."""

    data: bytes = field(repr=False)
    """Encoded; the very bytes that came in, if nothing had to be changed."""
    mime_type: str
    width: int
    """Pixels, as shown: after the turn that EXIF asks for."""
    height: int
    """Pixels, as shown."""
    note: str | None
    """What was changed, in words, or None."""


async def fit(
    data: bytes,
    *,
    ratio: str,
    mode: FitMode,
    target: Size | None = None,
    limits: ImageLimits | None = None,
) -> Fitted:
    """Fit a picture to an aspect ratio; in a thread, if it is more than a glance.

    Modes: ``crop`` cuts equal parts off two sides, ``pad`` adds them: a blurred enlargement of the
    picture where it is opaque, transparency where it is not. Both let a picture pass untouched that
    is within 2 % of the ratio. ``exact`` always cuts out the largest centred rectangle that has the
    ratio to the pixel. ``none`` changes nothing. What padding would make larger than 16383 pixels
    a side, or than the limit, is cropped.

    PNG, JPEG (of the same quality and kind) and WebP (quality 95, or lossless as it was) keep their
    type, others become PNG; mode and colour profile stay, other metadata of a changed picture does
    not. A palette becomes RGB(A) only where it must be padded or scaled; 16-bit colour becomes
    8-bit.

    Args:
        data: The encoded picture.
        ratio: Width to height, like ``9:16``.
        mode: See above.
        target: The size in pixels to deliver, or None to keep all pixels there are. A picture of
            another size is fitted to this size's own ratio and scaled to it, unless mode is none.
        limits: Of these, how many pixels the picture may have.

    Raises:
        UnusableImageError: It is no picture, too large or damaged. In mode none and within the
            tolerance only the header is looked at.
        ValueError: The ratio, the mode or the target makes no sense.
    """
    across, down = _parsed(ratio)
    if mode not in {"crop", "pad", "none", "exact"}:
        raise ValueError("mode must be crop, pad, none or exact")
    if target is not None and min(target) < 1:
        raise ValueError("target must be two positive numbers of pixels")
    max_pixels = (limits or ImageLimits()).max_pixels
    size = _plain_size(data)
    if size is not None and size[0] * size[1] <= max_pixels and max(size) <= MAX_SIDE:
        exact = mode == "exact"
        if mode == "none" or _passes(size, (across, down), target, exact=exact):
            return Fitted(data, sniff_mime(data) or "", *size, None)
    return await off_loop(_fit, data, (across, down), mode, target, max_pixels)


def _plain_size(data: bytes) -> Size | None:
    """The size that a glance at the header tells for certain: worth no trip to a thread."""
    mime = sniff_mime(data)
    if mime == "image/png":
        turned = data.find(b"eXIf", 0, _GLANCE) >= 0
    elif mime == "image/jpeg":
        turned = any(code == _JPEG_APP1 for code, _ in jpeg_segments(data))
        turned = turned or is_multi_scan(data)  # whose scans are counted, which takes longer
    else:
        return None
    return None if turned else pixel_size(data)


def _parsed(ratio: str) -> tuple[int, int]:
    across, _, down = ratio.partition(":")
    if not (across.isdecimal() and down.isdecimal() and int(across) and int(down)):
        raise ValueError("ratio must look like 9:16")
    common = gcd(int(across), int(down))
    return int(across) // common, int(down) // common


def _fit(
    data: bytes, ratio: tuple[int, int], mode: FitMode, target: Size | None, max_pixels: int
) -> Fitted:
    picture = open_picture(data, max_pixels)
    with pillow_errors():
        mime = sniff_mime(data) or ""
        shown = shown_size(picture)
        if mode == "none" or _passes(shown, ratio, target, exact=mode == "exact"):
            return Fitted(data, mime, *shown, None)
        style = encoder_settings_of(picture, data)
        if mode == "pad" and _exceeds_limit(_around(shown, target or ratio), max_pixels):
            mode = "crop"
        changed = _changed(apply_exif_orientation(picture), target or ratio, mode)
        if target is not None:
            changed = _scaled(changed, target)
        kept = mime if mime in _KEPT_TYPES else "image/png"
        encoded = encode(changed if kept == mime else to_supported_mode(changed), kept, style=style)
        return Fitted(encoded, kept, *changed.size, _note(mode, shown, changed.size))


def _passes(size: Size, ratio: Size, target: Size | None, *, exact: bool) -> bool:
    if target is not None:
        return size == target
    (width, height), (across, down) = size, ratio
    if exact:
        return size == _exact_size(size, ratio)
    asked = height * across  # whole numbers: exactly 2 % is within
    return 100 * abs(width * down - asked) <= _TOLERANCE_PERCENT * asked


def _changed(picture: Image, ratio: Size, mode: FitMode) -> Image:
    if mode == "pad":
        return _padded(picture, _around(picture.size, ratio))
    size = _exact_size(picture.size, ratio) if mode == "exact" else _within(picture.size, ratio)
    return crop(picture, _centred(picture.size, size))


def _within(size: Size, ratio: Size) -> Size:
    """The largest size of the ratio within another, to the nearest pixel; one side stays whole."""
    (width, height), (across, down) = size, ratio
    if width * down > height * across:
        return max(1, _nearest(height * across, down)), height
    return width, max(1, _nearest(width * down, across))


def _around(size: Size, ratio: Size) -> Size:
    """The smallest size of the ratio around another, to the nearest pixel."""
    (width, height), (across, down) = size, ratio
    if width * down > height * across:
        return width, max(height, _nearest(width * down, across))
    return max(width, _nearest(height * across, down)), height


def _exact_size(size: Size, ratio: Size) -> Size:
    """The largest size within another that has the ratio to the pixel, if there is one."""
    common = gcd(*ratio)
    across, down = ratio[0] // common, ratio[1] // common
    times = min(size[0] // across, size[1] // down)
    return (times * across, times * down) if times else _within(size, ratio)


def _exceeds_limit(size: Size, max_pixels: int) -> bool:
    return max(size) > _LONGEST_SIDE or size[0] * size[1] > max_pixels


def _nearest(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _centred(outer: Size, inner: Size) -> tuple[int, int, int, int]:
    left, top = (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2
    return left, top, left + inner[0], top + inner[1]


def _padded(picture: Image, size: Size) -> Image:
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    canvas = _backdrop(picture, size)
    canvas.info = dict(picture.info)
    canvas.paste(picture, _centred(size, picture.size)[:2])
    return canvas


def _backdrop(picture: Image, size: Size) -> Image:
    from PIL import Image, ImageFilter

    if picture.mode not in {"L", "RGB"}:  # nothing: transparent, or black
        return Image.new(picture.mode, size)
    filling = crop(picture, _centred(picture.size, _within(picture.size, size)))
    shrink = _BACKDROP_SIDE / max(size)
    small = filling.resize((max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))))
    blurred = small.filter(ImageFilter.GaussianBlur(_BACKDROP_BLUR))
    return blurred.resize(size, Image.Resampling.BICUBIC)


def _scaled(picture: Image, size: Size) -> Image:
    from PIL.Image import Resampling

    if picture.mode == "P":  # its colours cannot be mixed
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    return picture.resize(size, Resampling.LANCZOS)


def _note(mode: FitMode, before: Size, after: Size) -> str:
    done = "padded" if mode == "pad" else "cropped"
    return f"picture {done} from {before[0]}x{before[1]} to {after[0]}x{after[1]}"
