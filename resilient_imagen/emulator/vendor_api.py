"""What both vendors have in common: a call understood, a picture to make, an answer to shape."""

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
    """The vendor answers that the request is not acceptable."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"HTTP {reply.status}")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class UploadedImage:
    """A reference picture as it arrived."""

    mime_type: str
    """As declared by the sender."""
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request understood as far as it can be; whether it is acceptable is checked later."""

    operation: str
    """generate or edit."""
    model: str
    prompt: str = field(default="", repr=False)
    references: tuple[UploadedImage, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The other parameters, by the vendor's names."""
    aspect_ratio: str | None = None
    """As asked for, where the vendor has such a thing."""
    resolution: str | None = None
    """Gemini's imageSize or OpenAI's size, as asked for."""
    problem: Reply | None = None
    """The refusal of a body that could not be read at all."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The picture to make. Sizes are in pixels."""

    width: int
    height: int
    mime_type: str
    quality: str = ""
    count: int = 1


@dataclass(frozen=True)
class Picture:
    """An encoded picture."""

    data: bytes = field(repr=False)
    mime_type: str

    @cached_property
    def base64(self) -> RawJson:
        """In standard base64, encoded once however often it is sent."""
        return RawJson(base64.b64encode(self.data))


@dataclass(frozen=True, slots=True)
class Answer:
    """All that a shape needs to write the vendor's answer."""

    call: ParsedRequest
    canvas: ImageSize
    pictures: tuple[Picture, ...]
    """As many as the canvas counts or the shape wants, all different."""
    detail: str | None
    created: int
    """Seconds since 1970."""
    id: str


@dataclass(frozen=True, slots=True)
class ResponseVariant:
    """One form of a vendor's answer to a request that it accepted."""

    write: Callable[[Answer], Any]
    """Gives the JSON body, or a whole Reply."""
    pictures: int | None = None
    """How many pictures it shows; None for as many as were asked for."""
    canvas: Callable[[ImageSize], ImageSize] = replace
    """Changes what is drawn; by default nothing (``replace`` copies)."""


class VendorApi(Protocol):
    """One vendor's API on the wire: no state, no time."""

    name: str
    shapes: Mapping[str, ResponseVariant]
    errors: Mapping[str, Callable[[ParsedRequest, float | None], Reply]]

    def matches(self, path: str) -> bool:
        """Whether the path is an image endpoint of this vendor."""
        ...

    def read(self, request: HttpRequest) -> ParsedRequest:
        """Understand a request, as far as it can be."""
        ...

    def check(self, call: ParsedRequest) -> ImageSize:
        """Decide what picture to make.

        Raises:
            Refusal: The vendor does not accept the call.
        """
        ...

    def check_key(self, request: HttpRequest, accepted: frozenset[str] | None) -> None:
        """Look at the key.

        Raises:
            Refusal: There is none, or it is not one of ``accepted`` (None accepts any).
        """
        ...

    def error(self, code: int, retry_after: float | None = None) -> Reply:
        """This status in the vendor's own words."""
        ...
