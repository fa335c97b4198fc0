"""How much a caller's reference image may ask of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from resilient_imagen.images.image_errors import UnusableImageError

__all__ = ["LARGE_PIXELS", "MAX_COPIED_PIXELS", "MAX_SIDE", "ImageLimits", "check_size"]

MAX_SIDE: Final = 65_500
"""Pixels of a picture's longer side: the most that libjpeg takes. A picture of a hundred million
rows of one pixel would cost a hundred times as much as its pixels do."""
LARGE_PIXELS: Final = 25_000_000
"""Of references with more pixels one at a time is decoded in the process; 4K has 17 million."""
MAX_COPIED_PIXELS: Final = 50_000_000
"""Of a WebP or AVIF that is decoded: their decoders keep several copies, some 24 bytes a pixel."""


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse a picture of more pixels than ``max_pixels``, or of a side of more than MAX_SIDE.

    Raises:
        UnusableImageError: It is too large.
    """
    if size[0] * size[1] > max_pixels:
        raise UnusableImageError(f"has more than {max_pixels / 1e6:g} megapixels")
    if max(size) > MAX_SIDE:
        raise UnusableImageError(f"has a side of more than {MAX_SIDE} pixels")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds on what is read, decoded and fetched; a picture beyond one is refused unread.

    Read are PNG, JPEG, WebP, GIF, uncompressed BMP and plain AVIF, told by their bytes; HEIC where
    the application has registered a decoder with Pillow; not TIFF. Of animations the first frame
    is taken. Refused before anything is decoded is also what would cost more than its pixels say:

    - any type: a side of more than 65,500 pixels; of the metadata only a colour profile of up to
      4 MB is read, and which way is up;
    - JPEG: arithmetic or lossless coding, more than 32 scans, scans times pixels over 3 billion,
      more than 4096 segments, over a gigabyte of coefficients in several scans;
    - PNG: more than 50,000 chunks; WebP: more than 10,000;
    - WebP and AVIF that must be decoded: more than 50 megapixels;
    - GIF: a frame of more than 25 megapixels where the file claims less;
    - AVIF: animations, grids, layers, more than one frame in an item.

    So a picture that must be decoded takes up to 5 CPU seconds and 1.1 GB on top of its bytes
    (measured; a test holds it to 20 s and 1.5 GB), and a refused one less than 0.1 s and no memory.
    References of more than 25 megapixels are decoded one at a time in the whole process.

    Raises:
        ValueError: A bound is not positive.
    """

    max_reference_bytes: int = 200_000_000
    """Bytes of one encoded picture that is read at all; models take less, and get less."""
    max_pixels: int = 100_000_000
    """Width times height of a picture that is worked on, or sent."""
    max_read_pixels: int = 250_000_000
    """Width times height of a reference that is read, to be made smaller; judged from the header
    before a pixel is decoded."""
    max_loading: int = 6
    """References of one call loaded at a time; bounds memory, together with the three above."""
    max_tried: int = 32
    """References of one call that are read, or loaded from addresses, usable or not: twice as many
    as any model takes. The rest is dropped."""
    fetch_seconds: float = 20.0
    """Seconds for one address altogether: name lookup, connecting, redirects and the body. Also
    for all references of one call together that have to be loaded from somewhere."""
    connect_seconds: float = 5.0
    """Seconds for connecting to one of a name's addresses before the next is tried."""
    max_redirects: int = 3
    """Redirects followed for one address; 0 follows none."""
    allow_http: bool = False
    """Also load from plain http addresses."""
    allow_private: bool = False
    """Also load from loopback, private and other addresses that are not public. Only for trusted
    callers: a caller that names an address can then reach your internal services."""

    def __post_init__(self) -> None:
        """Refuse bounds that nothing could meet."""
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
        """Refuse an encoded picture of more bytes than ``max_reference_bytes``.

        Raises:
            UnusableImageError: It is too large.
        """
        if size > self.max_reference_bytes:
            raise UnusableImageError(f"is larger than {self.max_reference_bytes / 1e6:g} MB")
