"""Image limits: bounds on the resources that a caller's reference images may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from resilient_imagen.images.image_errors import UnusableImageError

__all__ = ["LARGE_PIXELS", "MAX_COPIED_PIXELS", "MAX_SIDE", "ImageLimits", "check_size"]

MAX_SIDE: Final = 65_500
"""Maximum pixels of an image's longer side, which is libjpeg's limit. An image of a hundred million
rows of one pixel would cost a hundred times more than its number of pixels suggests."""
LARGE_PIXELS: Final = 25_000_000
"""References with more pixels are decoded one at a time in the process; 4K has 17 million."""
MAX_COPIED_PIXELS: Final = 50_000_000
"""Maximum pixels of a WebP or AVIF to decode: their decoders need some 24 bytes a pixel."""


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Reject an image with more than ``max_pixels`` pixels, or a side longer than MAX_SIDE.

    Raises:
        UnusableImageError: The image is too large.
    """
    if size[0] * size[1] > max_pixels:
        raise UnusableImageError(f"has more than {max_pixels / 1e6:g} megapixels")
    if max(size) > MAX_SIDE:
        raise UnusableImageError(f"has a side of more than {MAX_SIDE} pixels")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds on reading, decoding and fetching; an image beyond a bound is rejected unread.

    Supported are PNG, JPEG, WebP, GIF, uncompressed BMP and plain AVIF, identified by their bytes,
    and HEIC if the application has registered a decoder with Pillow; TIFF is not. Of animations the
    first frame is used. Images whose cost is not bounded by their pixels are rejected, too:

    - any type: a side of more than 65,500 pixels; the only metadata that are read are the
      orientation and a colour profile of up to 4 MB;
    - JPEG: arithmetic or lossless coding, more than 32 scans, scans times pixels over 3 billion,
      more than 4096 segments, over a gigabyte of coefficients in several scans;
    - PNG: more than 50,000 chunks; WebP: more than 10,000;
    - WebP and AVIF that must be decoded: more than 50 megapixels;
    - GIF: a frame of more than 25 megapixels where the file claims less;
    - AVIF: animations, grids, layers, more than one frame in an item.

    So decoding an image takes up to 5 CPU seconds and 1.1 GB in addition to its bytes (measured; a
    test asserts 20 s and 1.5 GB), and rejecting one less than 0.1 s and no memory. References of
    more than 25 megapixels are decoded one at a time in the whole process.

    Raises:
        ValueError: A bound is not positive.
    """

    max_reference_bytes: int = 200_000_000
    """Maximum bytes of an encoded image to read; for sending, the model's limit applies, too."""
    max_pixels: int = 100_000_000
    """Maximum of width times height of an image that is processed or sent."""
    max_read_pixels: int = 250_000_000
    """Maximum of width times height of a reference that is read in order to make it smaller;
    checked in the header before decoding."""
    max_loading: int = 6
    """References of one call that are loaded concurrently; bounds memory."""
    max_tried: int = 32
    """References of one call that are read or fetched, usable or not; twice as many as any model
    supports. Further ones are dropped."""
    fetch_seconds: float = 20.0
    """Seconds for one URL: name lookup, connecting, redirects and the body. It is also the limit
    for all URLs and files of one call together."""
    connect_seconds: float = 5.0
    """Seconds for connecting to one address of a host before the next one is tried."""
    max_redirects: int = 3
    """Redirects followed for one address; 0 follows none."""
    allow_http: bool = False
    """Also load from plain http addresses."""
    allow_private: bool = False
    """Also load from loopback, private and other addresses that are not public. Only for trusted
    callers: a caller that names an address can then reach your internal services."""

    def __post_init__(self) -> None:
        """Reject bounds that no image could meet."""
        for name in (
            "max_reference_bytes",
            "max_pixels",
            "max_read_pixels",
            "max_loading",
            "max_tried",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("fetch_seconds", "connect_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0")
        if self.max_redirects < 0:
            raise ValueError("max_redirects must not be negative")

    def check_bytes(self, size: int) -> None:
        """Reject an encoded image with more than ``max_reference_bytes`` bytes.

        Raises:
            UnusableImageError: The image is too large.
        """
        if size > self.max_reference_bytes:
            raise UnusableImageError(f"is larger than {self.max_reference_bytes / 1e6:g} MB")
