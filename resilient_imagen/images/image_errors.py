"""The one error that bytes which are no usable picture lead to."""

from __future__ import annotations

__all__ = ["UnusableImageError"]


class UnusableImageError(ValueError):
    """A picture cannot be used. The text says why in plain words and never holds content."""
