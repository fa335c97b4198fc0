"""The image fitter: makes a delivered image have the aspect ratio that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from resilient_imagen.errors import InvalidResponseError
from resilient_imagen.images.completeness import is_complete
from resilient_imagen.images.fit import fit
from resilient_imagen.images.image_errors import UnusableImageError

if TYPE_CHECKING:
    from resilient_imagen.images.fit import FitMode
    from resilient_imagen.providers.base import ProviderResult
    from resilient_imagen.request import ImageRequest

__all__ = ["FittedImage", "ImageFitter"]


class FittedImage(NamedTuple):
    """A delivered image that fits the request."""

    data: bytes
    mime_type: str
    notes: tuple[str, ...] = ()
    """A sentence for each change, and for each option that the provider did not honour."""


class ImageFitter:
    """Checks delivered images and fits them to the request.

    Args:
        mode: How an image of another aspect ratio is changed.
    """

    def __init__(self, mode: FitMode) -> None:
        self._mode = mode

    async def fit(self, request: ImageRequest, answer: ProviderResult) -> FittedImage:
        """Return the first image, in the requested aspect ratio.

        Raises:
            InvalidResponseError: The image is incomplete or cannot be decoded.
        """
        data = answer.images[0].data
        if not is_complete(data):
            raise InvalidResponseError(status=200)
        try:
            fitted = await fit(data, ratio=request.aspect_ratio, mode=self._mode)
        except UnusableImageError:
            raise InvalidResponseError(status=200) from None
        changes = () if fitted.note is None else (fitted.note,)
        return FittedImage(fitted.data, fitted.mime_type, (*changes, *answer.adjustments))
