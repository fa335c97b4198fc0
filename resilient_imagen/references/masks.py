"""Mask loading: read a caller's mask and fit it to the image that it belongs to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from resilient_imagen.errors import InvalidRequestError
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.mask import mask_for
from resilient_imagen.images.worker_pool import off_loop
from resilient_imagen.references.loading import load_references

if TYPE_CHECKING:
    from resilient_imagen.images.limits import ImageLimits
    from resilient_imagen.references.fetch import Fetcher
    from resilient_imagen.request import Reference

__all__ = ["fit_mask", "load_mask"]


async def load_mask(
    raw: object, image: Reference, *, limits: ImageLimits, fetch: Fetcher | None, seconds: float
) -> Reference:
    """Read a mask in any form that a reference may have, and return it as a PNG.

    Args:
        raw: The caller's mask.
        image: The image to be edited.
        limits: Bounds for the mask.
        fetch: Loads addresses; None allows none.
        seconds: Time for reading an address or a file.

    Raises:
        InvalidRequestError: It cannot be read, marks no area, or has other proportions than the
            image; the text contains no image data.
    """
    loaded = await load_references(
        [raw], limits=limits, fetch=fetch, strict=True, seconds=seconds, called="mask"
    )
    return await fit_mask(loaded.references[0], image)


async def fit_mask(mask: Reference, image: Reference) -> Reference:
    """Return the mask in the size of the image, which may have been made smaller.

    Raises:
        InvalidRequestError: As ``load_mask``.
    """
    try:
        data = await off_loop(mask_for, image.data, mask.data)
    except UnusableImageError as error:
        raise InvalidRequestError(f"mask {error}") from None
    return replace(mask, data=data, mime_type="image/png")
