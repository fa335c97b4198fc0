"""Image errors: the exception for bytes that are not a usable image."""

from __future__ import annotations

__all__ = ["UnusableImageError"]


class UnusableImageError(ValueError):
    """An image cannot be used. The text has the cause and never contains image data."""
