"""What comes back: the image, where it came from, what was tried on the way and what it cost."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

if TYPE_CHECKING:
    from PIL.Image import Image

    from resilient_imagen.reasons import Reason

__all__ = ["Attempt", "DroppedReference", "ImageDict", "ImageInput", "ImageResult", "Usage"]


class Usage(TypedDict):
    """What a request used, as the vendor counted it; None where it did not say."""

    provider: str
    model: str
    input_tokens: int | None
    output_tokens: int | None
    total_tokens: int | None
    cost_usd: float | None
    """US dollars, from the model table's prices; None when the model has none there."""


class DroppedReference(TypedDict):
    """A reference image that was not sent, and why."""

    index: int
    """Its place in the caller's list, from 0."""
    why: str


class ImageDict(TypedDict):
    """One delivered image, as the drop-in functions return it; ready for JSON."""

    image_base64: str
    """The encoded picture in standard base64."""
    mime_type: str
    """Its true type, sniffed from the bytes."""
    provider: str
    """``google``, ``openai`` or a custom provider's name."""
    model: str
    attempts: int
    """Requests sent for it, the successful one included."""
    fallback_reason: str | None
    """The reason for which the primary was left, or None when it served."""
    dropped_references: list[DroppedReference]
    usage: Usage
    latency_s: float
    """Seconds the whole call took, queueing, retries and fallback included."""
    adjustments: list[str]
    """What was changed, in words."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request really sent; a refusal by a guard is not an attempt."""

    provider: str
    model: str
    reason: Reason | None
    """None when it succeeded."""
    status: int | None
    """HTTP status, or None when no answer came."""
    latency_s: float
    """Seconds from sending to the answer, the failure or the timeout."""
    retry_after: float | None
    """Seconds the server asked to wait, or None."""
    usage: Usage | None = field(default=None, hash=False)
    """What the vendor counted, with a picture or without one; None when it did not say."""
    may_have_been_billed: bool = False
    """True when it delivered, produced tokens all the same, or may have gone on unseen: no answer,
    a torn one, a server's error other than overload, or none of the tokens told."""


@dataclass(frozen=True)
class ImageResult:
    """One delivered image."""

    image_bytes: bytes = field(repr=False)
    """The encoded picture."""
    mime_type: str
    """Its true type, sniffed from the bytes."""
    provider: str
    """Who made it: ``google``, ``openai`` or a custom provider's name."""
    model: str
    attempts: int
    """Requests sent for it, the successful one included."""
    fallback_reason: Reason | None
    """Why the primary was left, or None when it served."""
    dropped_references: tuple[DroppedReference, ...]
    usage: Usage
    latency_s: float
    """Seconds the whole call took, queueing, retries and fallback included."""
    adjustments: tuple[str, ...] = ()
    """What was changed, in words: the picture cropped or padded first, then references mended."""

    @cached_property
    def image_base64(self) -> str:
        """The picture in standard base64."""
        return base64.b64encode(self.image_bytes).decode("ascii")

    def to_dict(self, *, image_base64: str | None = None) -> ImageDict:
        """The plain dict that the drop-in functions return.

        Args:
            image_base64: The picture in base64, when the caller has it already: encoding 20 MB
                takes some 40 ms, which an event loop may want to spend elsewhere.
        """
        return {
            "image_base64": self.image_base64 if image_base64 is None else image_base64,
            "mime_type": self.mime_type,
            "provider": self.provider,
            "model": self.model,
            "attempts": self.attempts,
            "fallback_reason": None if self.fallback_reason is None else str(self.fallback_reason),
            "dropped_references": [dropped.copy() for dropped in self.dropped_references],
            "usage": self.usage.copy(),
            "latency_s": self.latency_s,
            "adjustments": list(self.adjustments),
        }

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the picture to a file, replace an existing one, and return the file's path.

        The picture is converted if the extension is png, jpg, jpeg or webp and it is of another
        type (the vendor chooses the type, so a fallback may change it). A path without an extension
        gets that of the picture's type. A picture that cannot be converted is written as it is.

        Converting blocks for up to seconds with a large picture; call it in a thread where an event
        loop runs: ``await asyncio.to_thread(result.save, path)``.

        Raises:
            ValueError: The extension is neither one of these nor that of the picture's own type;
                nothing is written.
            OSError: The file cannot be written.
        """
        from resilient_imagen.images import convert

        target = Path(path)
        if target.is_file() or not target.exists():  # a device or pipe keeps its name
            target = convert.path_for(target, self.mime_type)
        data, _ = convert.as_named(self.image_bytes, self.mime_type, target)
        target.write_bytes(data)
        return target

    def to_pil(self) -> Image:
        """Decode the picture to a Pillow image, turned upright as viewers show it.

        Blocks for up to seconds with a large picture; call it in a thread where an event loop runs.

        Raises:
            ValueError: The picture is damaged, or of a type that Pillow does not read.
        """
        from resilient_imagen.images import convert, image_errors

        try:
            return convert.decoded(self.image_bytes)
        except image_errors.UnusableImageError as error:
            raise ValueError(f"the picture from {self.provider} {error}") from None

    def _repr_png_(self) -> bytes | None:
        """Return the picture as PNG, for notebooks; None if it cannot be converted."""
        from resilient_imagen.images import convert

        data, mime_type = convert.as_type(self.image_bytes, self.mime_type, "image/png")
        return data if mime_type == "image/png" else None


ImageInput: TypeAlias = (
    str | bytes | bytearray | memoryview | PathLike[str] | Mapping[str, object] | ImageResult
)
"""A picture that a caller passes: base64, a data URL or an http(s) address; the encoded bytes; a
path; a dict with ``image_base64`` or ``image_url``, such as an ImageDict; an earlier result."""
