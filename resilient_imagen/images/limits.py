"""How much a caller's reference image may ask of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from resilient_imagen.images.faults import UnusableImageError

__all__ = ["ImageLimits"]


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds on what is read, decoded and fetched; a picture beyond one is refused unread.

    Raises:
        ValueError: A bound is not positive.
    """

    max_reference_bytes: int = 200_000_000
    """Bytes of one encoded picture that is read at all; models take less, and get less."""
    max_pixels: int = 100_000_000
    """Width times height of a picture that is worked on, or sent."""
    max_read_pixels: int = 250_000_000
    """Width times height of a reference that is read, to be made smaller; judged from the header
    before a pixel is decoded. At most a gigabyte once decoded, one such picture at a time."""
    max_loading: int = 6
    """References of one call loaded at a time; bounds memory, together with the three above."""
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
    callers: whoever may name an address may then reach your internal services."""

    def __post_init__(self) -> None:
        """Refuse bounds that nothing could meet."""
        for name in ("max_reference_bytes", "max_pixels", "max_read_pixels", "max_loading"):
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
