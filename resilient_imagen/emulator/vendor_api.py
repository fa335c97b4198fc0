"""Vendor API: the protocol of a vendor, parsed requests, images and response variants."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from resilient_imagen.emulator.http_messages import RawJson

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.emulator.http_messages import HttpRequest, Reply

__all__ = [
    "Answer",
    "ApiError",
    "ImageSize",
    "ParsedRequest",
    "Picture",
    "ResponseVariant",
    "UploadedImage",
    "VendorApi",
]


class ApiError(Exception):
    """The vendor rejects the request with an error response."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"HTTP {reply.status}")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class UploadedImage:
    """A reference image as it was received."""

    mime_type: str
    """As declared by the sender."""
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request, parsed as far as possible and not yet validated."""

    operation: str
    """generate or edit."""
    model: str
    prompt: str = field(default="", repr=False)
    references: tuple[UploadedImage, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The other parameters, by the vendor's names."""
    aspect_ratio: str | None = None
    """The requested ratio, if the vendor has that parameter."""
    resolution: str | None = None
    """The requested imageSize (Gemini) or size (OpenAI)."""
    seed: int | None = None
    """The requested seed, if the vendor has that parameter."""
    mask: UploadedImage | None = None
    problem: Reply | None = None
    """The error response for a body that could not be parsed."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The image to render. Sizes are in pixels."""

    width: int
    height: int
    mime_type: str
    quality: str = ""
    count: int = 1
    previews: int | None = None
    """Partial images to stream before the images; None if no event stream is requested."""
    transparent: bool = False
    """Whether the background is transparent."""
    compression: int | None = None
    """The requested quality of a JPEG or WebP, from 0 to 100."""
    seed: int | None = None
    """Equal seeds give equal images, other seeds other images; None if none is requested."""


@dataclass(frozen=True)
class Picture:
    """An encoded image."""

    data: bytes = field(repr=False)
    mime_type: str

    @cached_property
    def base64(self) -> RawJson:
        """Return the image in standard base64; it is encoded once."""
        return RawJson(base64.b64encode(self.data))


@dataclass(frozen=True, slots=True)
class Answer:
    """The input of a response variant."""

    call: ParsedRequest
    canvas: ImageSize
    pictures: tuple[Picture, ...]
    """Different images, as many as requested or as the variant needs."""
    previews: tuple[Picture, ...]
    """The partial images of an event stream."""
    detail: str | None
    created: int
    """Seconds since 1970."""
    id: str


@dataclass(frozen=True, slots=True)
class ResponseVariant:
    """One form of a vendor's response to a request that it accepted."""

    write: Callable[[Answer], Any]
    """Returns the JSON body, or a whole Reply."""
    pictures: int | None = None
    """Number of images; None means the requested number."""
    canvas: Callable[[ImageSize], ImageSize] = replace
    """Changes the image to render; the default changes nothing (``replace`` copies)."""


class VendorApi(Protocol):
    """One vendor's HTTP API, without state and time."""

    name: str
    shapes: Mapping[str, ResponseVariant]
    errors: Mapping[str, Callable[[ParsedRequest, float | None], Reply]]

    def matches(self, path: str) -> bool:
        """Return whether the path is an image endpoint of this vendor."""
        ...

    def read(self, request: HttpRequest) -> ParsedRequest:
        """Parse a request as far as possible."""
        ...

    def check(self, call: ParsedRequest) -> ImageSize:
        """Validate a request and return the image to render.

        Raises:
            ApiError: The vendor does not accept the request.
        """
        ...

    def check_key(self, request: HttpRequest, accepted: frozenset[str] | None) -> None:
        """Check the API key.

        Raises:
            ApiError: The key is missing, or not in ``accepted`` (None accepts any).
        """
        ...

    def error(self, code: int, retry_after: float | None = None) -> Reply:
        """Return the vendor's error for a status."""
        ...
