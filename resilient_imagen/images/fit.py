"""Fitting of a delivered image: crop, pad or scale it to the requested ratio, convert its type.

Providers deliver their nearest size, and sometimes ignore the ratio. The image may become the first
frame of a video, so the ratio matters. Not every provider can deliver the requested type.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import TYPE_CHECKING, Final, Literal

from resilient_imagen.images.codec import (
    EncoderSettings,
    apply_exif_orientation,
    crop,
    encode,
    encoder_settings_of,
    open_picture,
    pillow_errors,
    shown_size,
    to_mode_of,
    to_supported_mode,
)
from resilient_imagen.images.decodable import is_multi_scan
from resilient_imagen.images.inspect import jpeg_segments, pixel_size, sniff_mime
from resilient_imagen.images.limits import MAX_SIDE, ImageLimits
from resilient_imagen.images.worker_pool import off_loop

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Encoding", "FitMode", "Fitted", "fit"]

FitMode = Literal["crop", "pad", "none", "exact"]
Size = tuple[int, int]

_TOLERANCE_PERCENT: Final = 2
_KEPT_TYPES: Final = frozenset(("image/png", "image/jpeg", "image/webp"))
_QUALITY: Final = 95
"""Quality of a JPEG or WebP if none is requested."""
_BACKDROP_SIDE: Final = 64
"""Pixels of the longer side of the thumbnail that is enlarged to a backdrop; small is quick."""
_BACKDROP_BLUR: Final = 3
_GLANCE: Final = 2**16
"""First bytes of a PNG, which contain its orientation if there is one."""
_JPEG_APP1: Final = 0xE1
"""Code of the segment that contains a JPEG's orientation."""
_LONGEST_SIDE: Final = 16_383
"""Maximum pixels of a side: WebP's limit, and more than any video needs."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """An image of the requested ratio, or as near to it as the mode allows."""

    data: bytes = field(repr=False)
    """The encoded image; the same object as the input if no change was necessary."""
    mime_type: str
    width: int
    """Pixels, with the EXIF orientation applied."""
    height: int
    """Pixels, with the EXIF orientation applied."""
    notes: tuple[str, ...]
    """A description of each change."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoding that an image must have."""

    mime_type: str
    """image/png, image/jpeg or image/webp."""
    quality: int | None = None
    """Quality from 0 to 100 of a JPEG or WebP that is encoded here; None for the usual one."""
    always: bool = False
    """Whether an image that has the type already is encoded again, for its quality."""


async def fit(
    data: bytes,
    *,
    ratio: str,
    mode: FitMode,
    target: Size | None = None,
    limits: ImageLimits | None = None,
    encoding: Encoding | None = None,
) -> Fitted:
    """Fit an image to an aspect ratio and an encoding, in a thread if the header is not sufficient.

    Modes: ``crop`` cuts equal parts off two sides. ``pad`` adds equal parts on two sides: a blurred
    enlargement of an opaque image, or transparency. Both leave an image unchanged that is within
    2 % of the ratio. ``exact`` always cuts out the largest centred rectangle that has exactly the
    ratio. ``none`` changes nothing. If padding would exceed 16383 pixels a side, or the limit on
    pixels, the image is cropped instead.

    Without ``encoding``, PNG, JPEG (with the same encoder settings) and WebP (quality 95, or
    lossless if it was) keep their type; other types become PNG if they are changed. Transparency
    becomes white in a JPEG. Mode and colour profile are kept; other metadata of a
    changed image are removed. A palette becomes RGB(A) only if it must be padded or scaled; 16-bit
    colour becomes 8-bit.

    Args:
        data: The encoded image.
        ratio: Width to height, like ``9:16``.
        mode: See above.
        target: The size in pixels to deliver; None keeps all pixels. An image of another size is
            fitted to the ratio of the target and scaled to it, unless the mode is ``none``.
        limits: Its ``max_pixels`` bounds the image.
        encoding: The type to deliver; None keeps the image's own.

    Raises:
        UnusableImageError: The data are not an image, too large or damaged. If the mode is ``none``
            or the image is within the tolerance, only the header is checked.
        ValueError: The ratio, the mode or the target is not valid.
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
        fits = mode == "none" or _passes(size, (across, down), target, exact=exact)
        if fits and _is_encoded_as(data, encoding):
            return Fitted(data, sniff_mime(data) or "", *size, ())
    return await off_loop(_fit, data, (across, down), mode, target, max_pixels, encoding)


def _is_encoded_as(data: bytes, encoding: Encoding | None) -> bool:
    return encoding is None or (sniff_mime(data) == encoding.mime_type and not encoding.always)


def _plain_size(data: bytes) -> Size | None:
    """Return the size if the header alone determines it quickly, else None."""
    mime = sniff_mime(data)
    if mime == "image/png":
        turned = data.find(b"eXIf", 0, _GLANCE) >= 0
    elif mime == "image/jpeg":
        turned = any(code == _JPEG_APP1 for code, _ in jpeg_segments(data))
        turned = turned or is_multi_scan(data)  # counting its scans takes longer
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
    data: bytes,
    ratio: tuple[int, int],
    mode: FitMode,
    target: Size | None,
    max_pixels: int,
    encoding: Encoding | None,
) -> Fitted:
    picture = open_picture(data, max_pixels)
    with pillow_errors():
        mime = sniff_mime(data) or ""
        shown = shown_size(picture)
        fits = mode == "none" or _passes(shown, ratio, target, exact=mode == "exact")
        if fits and _is_encoded_as(data, encoding):
            return Fitted(data, mime, *shown, ())
        style = encoder_settings_of(picture, data)
        notes = []
        changed = apply_exif_orientation(picture)
        if not fits:
            if mode == "pad" and _exceeds_limit(_around(shown, target or ratio), max_pixels):
                mode = "crop"
            changed = _changed(changed, target or ratio, mode)
            if target is not None:
                changed = _scaled(changed, target)
            notes.append(_note(mode, shown, changed.size))
        if encoding is None:
            wanted = mime if mime in _KEPT_TYPES else "image/png"
            encoded = encode(
                changed if wanted == mime else to_supported_mode(changed), wanted, style=style
            )
        else:
            wanted = encoding.mime_type
            encoded = _encoded(changed, mime, style, encoding)
            notes += _encoding_note(mime, encoding)
        return Fitted(encoded, wanted, *changed.size, tuple(notes))


def _encoded(picture: Image, mime: str, style: EncoderSettings, encoding: Encoding) -> bytes:
    """Encode an image of type ``mime`` as requested."""
    wanted = encoding.mime_type
    if encoding.quality is not None:
        style = EncoderSettings(progressive=style.progressive)
    elif wanted != mime:
        style = EncoderSettings(subsampling=0)
    whole = picture if wanted == mime else to_mode_of(picture, wanted)
    return encode(
        whole,
        wanted,
        style=style,
        quality=_QUALITY if encoding.quality is None else encoding.quality,
    )


def _encoding_note(mime: str, encoding: Encoding) -> list[str]:
    if mime != encoding.mime_type:
        return [f"image converted from {mime} to {encoding.mime_type}"]
    return [f"image compressed to quality {encoding.quality}"] if encoding.always else []


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
    """Return the largest size of the ratio inside ``size``, rounded; one side is unchanged."""
    (width, height), (across, down) = size, ratio
    if width * down > height * across:
        return max(1, _nearest(height * across, down)), height
    return width, max(1, _nearest(width * down, across))


def _around(size: Size, ratio: Size) -> Size:
    """Return the smallest size of the ratio that contains ``size``, rounded."""
    (width, height), (across, down) = size, ratio
    if width * down > height * across:
        return width, max(height, _nearest(width * down, across))
    return max(width, _nearest(height * across, down)), height


def _exact_size(size: Size, ratio: Size) -> Size:
    """Return the largest size inside ``size`` that has exactly the ratio, if there is one."""
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

    if picture.mode == "P":  # palette indices cannot be interpolated
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    return picture.resize(size, Resampling.LANCZOS)


def _note(mode: FitMode, before: Size, after: Size) -> str:
    done = "padded" if mode == "pad" else "cropped"
    return f"image {done} from {before[0]}x{before[1]} to {after[0]}x{after[1]}"
