"""What is asked for: one validated, immutable request that every provider understands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from resilient_imagen.errors import InvalidRequestError

__all__ = [
    "ASPECT_RATIOS",
    "RESOLUTIONS",
    "AspectRatio",
    "ImageRequest",
    "Operation",
    "Reference",
    "Resolution",
]

AspectRatio = Literal[
    "1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9",
    "1:4", "4:1", "1:8", "8:1",
]  # fmt: skip
Resolution = Literal["1K", "2K", "4K"]
Operation = Literal["generate", "edit"]

ASPECT_RATIOS: Final[tuple[AspectRatio, ...]] = get_args(AspectRatio)
RESOLUTIONS: Final[tuple[Resolution, ...]] = get_args(Resolution)


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference image, ready to be sent."""

    data: bytes = field(repr=False)
    """The encoded picture, byte for byte as it goes to the provider."""
    mime_type: str
    """Its true type, sniffed from the bytes: image/png, image/jpeg or image/webp."""
    index: int
    """Its place in the caller's list, from 0."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image to be made.

    Raises:
        InvalidRequestError: An argument is not allowed; the text says which and what is.
    """

    prompt: str = field(repr=False)
    """The caller's words, unchanged. For an edit: the feedback."""
    aspect_ratio: AspectRatio = "9:16"
    """Width to height, one of ASPECT_RATIOS."""
    resolution: Resolution = "2K"
    """One of RESOLUTIONS: the side in pixels of a square of the same area, in units of 1024."""
    references: tuple[Reference, ...] = ()
    """Reference images, in the caller's order. For an edit the first is the image to change."""
    operation: Operation = "generate"

    def __post_init__(self) -> None:
        """Refuse what no provider could serve, before anything is sent and paid for."""
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            what = "feedback" if self.operation == "edit" else "prompt"
            raise InvalidRequestError(f"{what} must be a text that is not empty")
        try:
            self.prompt.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError(
                "the prompt holds half a character, a lone surrogate"
            ) from None
        _one_of("aspect_ratio", self.aspect_ratio, ASPECT_RATIOS)
        _one_of("resolution", self.resolution, RESOLUTIONS)

    @property
    def ratio(self) -> float:
        """Width divided by height."""
        width, height = self.aspect_ratio.split(":")
        return int(width) / int(height)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        given = repr(value) if isinstance(value, str) and len(value) <= 20 else type(value).__name__  # noqa: PLR2004 - long enough to recognise a typing error, too short for a prompt
        raise InvalidRequestError(f"{name} {given} is not allowed; use one of {', '.join(allowed)}")
