"""Image result: the image, its provider, the attempts made for it and their cost."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypeAlias, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from resilient_imagen.reasons import Reason

__all__ = [
    "Attempt",
    "DroppedReference",
    "EncodedImage",
    "ImageDict",
    "ImageInput",
    "ImageResult",
    "Usage",
]


class Usage(TypedDict):
    """Usage of a request as the vendor counted it; None for counts that it did not report."""

    provider: str
    model: str
    input_tokens: int | None
    output_tokens: int | None
    total_tokens: int | None
    cost_usd: float | None
    """US dollars, by the prices in the model table; None if the model has no price."""


class DroppedReference(TypedDict):
    """A reference image that was not sent, and the cause."""

    index: int
    """Its place in the caller's list, from 0."""
    why: str


class EncodedImage(TypedDict):
    """One of several delivered images."""

    image_base64: str
    """The encoded image in standard base64."""
    mime_type: str
    """Its true type, sniffed from the bytes."""


class ImageDict(TypedDict):
    """One delivered image, as the drop-in functions return it; ready for JSON."""

    image_base64: str
    """The encoded image in standard base64."""
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
    """The changes, one sentence each."""
    images: NotRequired[list[EncodedImage]]
    """All delivered images, if more than one was requested; the first is ``image_base64``, too."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request really sent; a rejection by a breaker or a full queue is not an attempt."""

    provider: str
    model: str
    reason: Reason | None
    """None if it succeeded."""
    status: int | None
    """HTTP status; None without a response."""
    latency_s: float
    """Seconds from sending to the response, the failure or the timeout."""
    retry_after: float | None
    """Seconds the server asked to wait, or None."""
    usage: Usage | None = field(default=None, hash=False)
    """The vendor's counts, with or without an image; None if it reported none."""
    may_have_been_billed: bool = False
    """True if the request delivered an image or used tokens, or if the vendor may have completed
    it: no or a truncated response, a server error other than overload, or no token counts."""
    images: int = 1
    """Images that it delivered, if it succeeded."""
    silent: bool = False
    """True if previews were requested and the vendor sent nothing, not even the headers of the
    stream, in the first 10 seconds. The vendor has then probably not begun to process the request:
    a slow request has headers by then."""


@dataclass(frozen=True)
class ImageResult:
    """The delivered image, or several if more than one was requested."""

    image_bytes: bytes = field(repr=False)
    """The encoded image; the first one of several."""
    mime_type: str
    """Its true type, sniffed from the bytes."""
    provider: str
    """The provider that delivered it: ``google``, ``openai`` or a custom provider's name."""
    model: str
    attempts: int
    """Requests sent for it, the successful one included."""
    fallback_reason: Reason | None
    """The reason for which the primary was left, or None if it served."""
    dropped_references: tuple[DroppedReference, ...]
    usage: Usage
    latency_s: float
    """Seconds the whole call took, queueing, retries and fallback included."""
    adjustments: tuple[str, ...] = ()
    """Changes, one sentence each: cropping or padding of the image first, then of references."""
    more_images: tuple[bytes, ...] = field(default=(), repr=False)
    """The encoded further images, if more than one was requested."""
    n: int = 1
    """The number of images that were requested. Fewer may have been delivered."""

    @property
    def images(self) -> tuple[bytes, ...]:
        """All delivered images, encoded; the first is ``image_bytes``."""
        return (self.image_bytes, *self.more_images)

    @cached_property
    def image_base64(self) -> str:
        """The image in standard base64."""
        return base64.b64encode(self.image_bytes).decode("ascii")

    def to_dict(
        self, *, image_base64: str | None = None, more_base64: Sequence[str] | None = None
    ) -> ImageDict:
        """Return the plain dict that the drop-in functions return.

        Args:
            image_base64: The image in base64, if the caller has it already: encoding 20 MB takes
                some 40 ms and blocks the event loop.
            more_base64: The further images in base64, for the same reason.
        """
        first = self.image_base64 if image_base64 is None else image_base64
        found: ImageDict = {
            "image_base64": first,
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
        if self.n > 1:
            from resilient_imagen.images.inspect import sniff_mime

            if more_base64 is None:
                more_base64 = [base64.b64encode(each).decode("ascii") for each in self.more_images]
            found["images"] = [
                EncodedImage(image_base64=encoded, mime_type=sniff_mime(data) or self.mime_type)
                for encoded, data in zip((first, *more_base64), self.images, strict=True)
            ]
        return found

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the image to a file, replacing an existing file, and return the file's path.

        The image is converted if the extension is png, jpg, jpeg or webp and the image has another
        type (the vendor chooses the type, so a fallback may change it). A path without an extension
        gets the extension of the image's type. An image that cannot be converted is written
        unchanged. Further images are written beside it: ``fox.png``, ``fox-2.png``, ``fox-3.png``.

        Converting a large image blocks for up to seconds; with an event loop, call it in a thread:
        ``await asyncio.to_thread(result.save, path)``.

        Raises:
            ValueError: The extension is neither one of these nor that of the image's own type, or
                several images would go to a device; nothing is written.
            OSError: The file cannot be written.
        """
        from resilient_imagen.images import convert
        from resilient_imagen.images.inspect import sniff_mime

        target = Path(path)
        is_device = target.exists() and not target.is_file()  # a device's or pipe's path is kept
        if is_device and self.more_images:
            raise ValueError(
                f"cannot save {len(self.images)} images to {target}: it is not a regular file"
            )
        others = [sniff_mime(data) or self.mime_type for data in self.more_images]
        types = [self.mime_type, *others]
        paths = [
            target if is_device else convert.path_for(convert.numbered(target, number), mime_type)
            for number, mime_type in enumerate(types, start=1)
        ]
        for each, data, mime_type in zip(paths, self.images, types, strict=True):
            each.write_bytes(convert.as_named(data, mime_type, each)[0])
        return paths[0]

    def to_pil(self, index: int = 0) -> Image:
        """Decode the image to a Pillow image, with its EXIF orientation applied.

        A large image blocks for up to seconds; with an event loop, call it in a thread.

        Args:
            index: The place of the image in ``images``, from 0.

        Raises:
            ValueError: The image is damaged, or of a type that Pillow does not read.
            IndexError: There are fewer images.
        """
        from resilient_imagen.images import convert, image_errors

        try:
            return convert.decoded(self.images[index])
        except image_errors.UnusableImageError as error:
            raise ValueError(f"the image from {self.provider} {error}") from None

    def _repr_png_(self) -> bytes | None:
        """Return the image, or all images side by side, as PNG for notebooks.

        Return None if an image cannot be converted.
        """
        from resilient_imagen.images import convert, image_errors

        if self.more_images:
            try:
                return convert.side_by_side(self.images)
            except image_errors.UnusableImageError:
                return None
        data, mime_type = convert.as_type(self.image_bytes, self.mime_type, "image/png")
        return data if mime_type == "image/png" else None


ImageInput: TypeAlias = (
    str | bytes | bytearray | memoryview | PathLike[str] | Mapping[str, object] | ImageResult
)
"""An image that a caller passes: base64, a data URL or an http(s) address; the encoded bytes; a
path; a dict with ``image_base64`` or ``image_url``, such as an ImageDict; an earlier result."""
