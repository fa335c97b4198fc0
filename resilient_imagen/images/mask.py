"""Masks: images whose transparent pixels mark the part of another image that is to be changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_imagen.images.codec import encode, open_picture, pillow_errors, shown_size
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.limits import ImageLimits

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["mask_for"]

_TOLERANCE: Final = 1
"""Pixels by which a mask's side may differ from the image's side in proportion."""


def mask_for(image: bytes, mask: bytes) -> bytes:
    """Return a mask as a PNG of the size of an image; only its transparency is kept.

    A mask of the same proportions is scaled, because the image may have been made smaller.
    Decoding takes up to seconds: call it off the event loop.

    Args:
        image: The encoded image, upright.
        mask: The encoded mask.

    Raises:
        UnusableImageError: An image cannot be read, the mask has other proportions than the image,
            or no pixel of it is fully transparent.
    """
    from PIL import Image

    limit = ImageLimits().max_pixels
    size = shown_size(open_picture(image, limit))
    picture = open_picture(mask, limit)
    if not _same_proportions(picture.size, size):
        raise UnusableImageError(
            f"is {picture.width}x{picture.height} pixels and the image {size[0]}x{size[1]}; "
            "make the mask as large as the image"
        )
    with pillow_errors():
        alpha = _alpha(picture)
        if alpha.size != size:
            alpha = alpha.resize(size, Image.Resampling.NEAREST)
        lowest = alpha.getextrema()[0]
        if lowest == 0:
            made = Image.new("RGBA", size)
            made.putalpha(alpha)
            return encode(made, "image/png")
    raise UnusableImageError(
        "has no fully transparent pixels; make the area to be changed transparent"
    )


def _same_proportions(one: tuple[int, int], other: tuple[int, int]) -> bool:
    scale = max(other) / max(one)
    return all(
        abs(side * scale - wanted) <= _TOLERANCE * max(1.0, scale)
        for side, wanted in zip(one, other, strict=True)
    )


def _alpha(picture: Image) -> Image:
    return picture.convert("RGBA").getchannel("A")
