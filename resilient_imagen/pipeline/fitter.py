"""The image fitter: makes delivered images have the requested aspect ratio and type."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.errors import InvalidResponseError
from resilient_imagen.images.completeness import is_complete
from resilient_imagen.images.fit import Encoding, fit
from resilient_imagen.images.image_errors import UnusableImageError

if TYPE_CHECKING:
    from resilient_imagen.images.fit import FitMode
    from resilient_imagen.providers.base import ProviderResult
    from resilient_imagen.request import ImageRequest

__all__ = ["MADE_HERE", "FittedImage", "ImageFitter"]

MADE_HERE: Final = frozenset({"output_format", "output_compression"})
"""Options that the fitter fulfils for a provider that ignores them."""


class FittedImage(NamedTuple):
    """A delivered image that fits the request."""

    data: bytes
    mime_type: str
    notes: tuple[str, ...] = ()
    """A sentence for each change."""
    ignored_options: tuple[str, ...] = ()
    """Options of the request that neither the provider nor the fitter fulfilled."""
    others: tuple[FittedImage, ...] = ()
    """The further images, if several were requested."""


class ImageFitter:
    """Checks delivered images and fits them to the request.

    Args:
        mode: How an image of another aspect ratio is changed.
    """

    def __init__(self, mode: FitMode) -> None:
        self._mode = mode

    async def fit(self, request: ImageRequest, answer: ProviderResult) -> FittedImage:
        """Return the images, at most as many as requested, in the requested ratio and type.

        Raises:
            InvalidResponseError: No image is complete and can be decoded.
        """
        encoding = _encoding(request, answer)
        images = [image.data for image in answer.images[: request.n or 1]]
        first, *others = (
            [await self._fit(images[0], request, encoding)]
            if len(images) == 1
            else await self._fit_all(images, request, encoding)
        )
        notes = chain(first.notes, *(each.notes for each in others), answer.adjustments)
        return FittedImage(
            first.data,
            first.mime_type,
            tuple(dict.fromkeys(notes)),
            tuple(name for name in answer.ignored_options if name not in MADE_HERE),
            tuple(others),
        )

    async def _fit_all(
        self, images: list[bytes], request: ImageRequest, encoding: Encoding | None
    ) -> list[FittedImage]:
        """Fit several images at the same time, and leave out those that cannot be used."""
        fitting = (self._fit(data, request, encoding) for data in images)
        results = await asyncio.gather(*fitting, return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException) and not isinstance(error, InvalidResponseError):
                raise error
        fitted = [each for each in results if isinstance(each, FittedImage)]
        if not fitted:
            raise InvalidResponseError(status=200)
        return fitted

    async def _fit(
        self, data: bytes, request: ImageRequest, encoding: Encoding | None
    ) -> FittedImage:
        if not is_complete(data):
            raise InvalidResponseError(status=200)
        try:
            fitted = await fit(data, ratio=request.aspect_ratio, mode=self._mode, encoding=encoding)
        except UnusableImageError:
            raise InvalidResponseError(status=200) from None
        return FittedImage(fitted.data, fitted.mime_type, fitted.notes)


def _encoding(request: ImageRequest, answer: ProviderResult) -> Encoding | None:
    if request.output_format is None:
        return None
    return Encoding(
        f"image/{request.output_format}",
        request.output_compression,
        always="output_compression" in answer.ignored_options,
    )
