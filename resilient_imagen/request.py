"""Image request: a validated, immutable object with all options of a request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, get_args

from resilient_imagen.errors import InvalidRequestError
from resilient_imagen.models import Quality, Resolution

if TYPE_CHECKING:
    from resilient_imagen.result import ImageInput

__all__ = [
    "ASPECT_RATIOS",
    "BACKGROUNDS",
    "MAX_IMAGES",
    "MAX_SEED",
    "OUTPUT_FORMATS",
    "QUALITIES",
    "RESOLUTIONS",
    "AspectRatio",
    "Background",
    "EditOptions",
    "ImageOptions",
    "ImageRequest",
    "Operation",
    "OutputFormat",
    "PartialImage",
    "Quality",
    "Reference",
    "RequestOptions",
    "Resolution",
    "check_option_names",
]

AspectRatio = Literal[
    "1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9",
    "1:4", "4:1", "1:8", "8:1",
]  # fmt: skip
Operation = Literal["generate", "edit"]
Background = Literal["transparent", "opaque"]
OutputFormat = Literal["png", "jpeg", "webp"]

ASPECT_RATIOS: Final[tuple[AspectRatio, ...]] = get_args(AspectRatio)
RESOLUTIONS: Final[tuple[Resolution, ...]] = get_args(Resolution)
_OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)
BACKGROUNDS: Final[tuple[Background, ...]] = get_args(Background)
OUTPUT_FORMATS: Final[tuple[OutputFormat, ...]] = get_args(OutputFormat)
QUALITIES: Final[tuple[Quality, ...]] = get_args(Quality)
MAX_IMAGES: Final = 10
"""Images in one request; OpenAI's limit."""
_MAX_PARTIAL_IMAGES: Final = 3
"""Partial images of one image; OpenAI's limit."""
_MAX_COMPRESSION: Final = 100
MAX_SEED: Final = 2**31 - 1
"""Gemini's seed is a signed 32-bit integer."""


class RequestOptions(TypedDict, total=False):
    """Options of what is requested.

    None means that an option is not requested. Each option is sent to every vendor that supports
    it. Other vendors serve the request without it, and ``adjustments`` lists it. A value that is
    not allowed raises InvalidRequestError before anything is sent.
    """

    n: int | None
    """Number of images, from 1 to 10. The first is requested like a single image; the others follow
    on the route that served it. If fewer come, the call succeeds with those."""
    background: Background | None
    """``transparent`` (for PNG and WebP) or ``opaque``."""
    output_format: OutputFormat | None
    """``png``, ``jpeg`` or ``webp``. It is always delivered: an image of another type is converted.
    None means the type that the vendor chooses."""
    output_compression: int | None
    """Quality of a JPEG or WebP in percent, from 0 to 100. Needs ``output_format``. If the vendor
    does not support it, the image is encoded again."""
    seed: int | None
    """Seed of the model's random numbers, from 0 to 2**31 - 1. If several images are requested one
    by one, each request gets the next number."""
    quality: Quality | None
    """``low``, ``medium``, ``high``, ``xhigh``, ``max`` or ``auto``; None means
    IMAGE_GEN_OPENAI_QUALITY."""
    partial_images: int | None
    """Number of previews of the image, from 0 to 3, for ``on_progress`` or a stream. OpenAI may
    send fewer, and charges for each."""
    vendor_options: Mapping[str, Mapping[str, Any]] | None
    """Further JSON fields of a vendor's request, like ``{"openai": {"moderation": "low"}}``. They
    cannot replace key, model, prompt or number of images."""


class ImageOptions(RequestOptions, total=False):
    """Options of one call: keyword arguments of the functions, the client and ``call_options``."""

    routes: str | Sequence[str] | None
    """The chain of routes for this call in place of IMAGE_GEN_ROUTES, in its syntax: a string with
    commas, or strings. Breakers and queues are kept between calls."""


class EditOptions(ImageOptions, total=False):
    """Options of an edit."""

    mask: ImageInput | None
    """An image of the size of the edited one, whose transparent pixels mark the area to change.
    Routes that support masks are asked first; without any the call raises InvalidRequestError."""


def check_option_names(options: Mapping[str, object], allowed: type) -> None:
    """Check names that a function received as ``**options``.

    Raises:
        TypeError: A name is not among the fields of the TypedDict ``allowed``.
    """
    known = allowed.__annotations__
    for name in options:
        if name not in known:
            raise TypeError(f"unexpected keyword argument {name!r}; options are {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference image, ready to be sent."""

    data: bytes = field(repr=False)
    """The encoded image, byte for byte as it goes to the provider."""
    mime_type: str
    """The type sniffed from the bytes: image/png, image/jpeg or image/webp."""
    index: int
    """Its place in the caller's list, from 0."""


@dataclass(frozen=True, slots=True)
class PartialImage:
    """A preview of an image that is still being generated."""

    data: bytes = field(repr=False)
    """The encoded preview."""
    mime_type: str
    index: int
    """Its number among the previews of this image, from 0."""


PartialImageCallback: TypeAlias = Callable[[PartialImage], None]


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One request for an image, as every provider receives it.

    None means that an option was not requested. A provider that does not support an option serves
    the request without it and lists it in ``ProviderResult.ignored_options``.

    Raises:
        InvalidRequestError: An argument is not allowed; the text names it and the allowed values.
    """

    prompt: str = field(repr=False)
    """The caller's prompt, unchanged. For an edit: the feedback."""
    aspect_ratio: AspectRatio = "9:16"
    """Width to height, one of ASPECT_RATIOS."""
    resolution: Resolution = "2K"
    """One of RESOLUTIONS: the side in pixels of a square of the same area, in units of 1024."""
    references: tuple[Reference, ...] = ()
    """Reference images, in the caller's order. For an edit the first is the image to change."""
    operation: Operation = "generate"
    n: int | None = None
    """Number of images, from 1 to MAX_IMAGES; None means one. A provider may deliver fewer."""
    mask: Reference | None = None
    """For an edit: a PNG of the image's size, whose transparent pixels mark the area to change."""
    background: Background | None = None
    output_format: OutputFormat | None = None
    output_compression: int | None = None
    """Quality of a JPEG or WebP image in percent, from 0 to 100."""
    seed: int | None = None
    """Seed of the model's random numbers, from 0 to 2**31 - 1. If several images are requested one
    by one, each request gets the next number."""
    quality: Quality | None = None
    """The model's quality level; None means the provider's configured quality."""
    vendor_options: Mapping[str, Mapping[str, Any]] | None = field(default=None, repr=False)
    """Further JSON fields of the vendor's request, by vendor (``google``, ``openai``)."""
    partial_images: int | None = None
    """Number of previews to send to ``on_partial_image``, from 1 to 3; 0 becomes None."""
    on_partial_image: PartialImageCallback | None = field(default=None, repr=False, compare=False)
    """Called on the event loop with each preview; must return at once and not raise."""
    on_response: Callable[[], None] | None = field(default=None, repr=False, compare=False)
    """Called on the event loop when the vendor begins to respond to a request with
    ``partial_images``: its first sign of life. Must return at once and not raise."""

    def __post_init__(self) -> None:
        """Reject a request that no provider could serve, before it is sent and billed."""
        if self.partial_images == 0 and type(self.partial_images) is int:
            object.__setattr__(self, "partial_images", None)
        _check_choice("operation", self.operation, _OPERATIONS)
        _check_prompt("feedback" if self.operation == "edit" else "prompt", self.prompt)
        _check_choice("aspect_ratio", self.aspect_ratio, ASPECT_RATIOS)
        _check_choice("resolution", self.resolution, RESOLUTIONS)
        if _chosen(self) != _NONE_CHOSEN:
            self._check_options()
        if self.references != () or self.mask is not None:
            _check_references(self.references, self.mask)
        if self.mask is not None and self.operation != "edit":
            raise InvalidRequestError("mask is allowed for an edit only")
        self._check_format()
        if self.vendor_options is not None:
            _check_vendor_options(self.vendor_options)

    def _check_options(self) -> None:
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) is not None:
                _check_choice(name, value, allowed)
        for name, bounds in _RANGES.items():
            if (value := getattr(self, name)) is not None:
                _check_range(name, value, *bounds)

    def _check_format(self) -> None:
        """Check that the format supports the options that depend on it."""
        if self.background == "transparent" and self.output_format == "jpeg":
            raise InvalidRequestError(
                "background 'transparent' is not allowed with output_format 'jpeg'; "
                "use png or webp, or leave output_format out"
            )
        if self.output_compression is not None and self.output_format not in _COMPRESSIBLE:
            raise InvalidRequestError(
                f"output_compression {self.output_compression} is not allowed with output_format "
                f"{self.output_format!r}; use {' or '.join(_COMPRESSIBLE)}"
            )

    def vendor_fields(self, vendor: str) -> dict[str, Any]:
        """Return the further JSON fields of the request for a vendor; empty if there are none."""
        return dict((self.vendor_options or {}).get(vendor, {}))

    @property
    def ratio(self) -> float:
        """Width divided by height."""
        width, height = self.aspect_ratio.split(":")
        return int(width) / int(height)


_COMPRESSIBLE: Final = ("jpeg", "webp")
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "background": BACKGROUNDS,
    "output_format": OUTPUT_FORMATS,
    "quality": QUALITIES,
}
_RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "n": (1, MAX_IMAGES),
    "output_compression": (0, _MAX_COMPRESSION),
    "seed": (0, MAX_SEED),
    "partial_images": (0, _MAX_PARTIAL_IMAGES),
}
_chosen: Final = attrgetter(*_CHOICES, *_RANGES)
"""Returns the values of these options; most requests have none."""
_LONGEST_SHOWN: Final = 20
"""Characters of a str in an error's text: enough to see a typing error, too few for a prompt."""
_LARGEST_SHOWN: Final = 10**15
"""Python refuses to print integers of thousands of digits."""
_NONE_CHOSEN: Final = (None,) * (len(_CHOICES) + len(_RANGES))


def _check_prompt(name: str, prompt: object) -> None:
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequestError(f"{name} must be a str that is not empty")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(f"the {name} contains an unpaired surrogate") from None


def _check_references(references: object, mask: object) -> None:
    if not isinstance(references, tuple) or not all(
        isinstance(each, Reference) for each in references
    ):
        raise InvalidRequestError("references must be a tuple of Reference")
    if mask is not None and not isinstance(mask, Reference):
        raise InvalidRequestError("mask must be a Reference or None")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidRequestError(
            f"{name} {shown(value)} is not allowed; use one of {', '.join(allowed)}"
        )


def shown(value: object) -> str:
    """Return a value of an argument for an error's text, or its type if the value may be long."""
    if isinstance(value, str):
        short = len(value) <= _LONGEST_SHOWN
    else:
        short = isinstance(value, float) or (isinstance(value, int) and abs(value) < _LARGEST_SHOWN)
    return repr(value) if short else type(value).__name__


def _check_range(name: str, value: object, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be an int or None, not {type(value).__name__}")
    if not lowest <= value <= highest:
        raise InvalidRequestError(
            f"{name} {value} is not allowed; use a number from {lowest} to {highest}"
        )


def _check_vendor_options(options: object) -> None:
    """Check that the options are JSON objects by vendor; the error's text contains no values."""
    try:
        fine = isinstance(options, Mapping) and all(
            isinstance(vendor, str)
            and isinstance(fields, Mapping)
            and all(isinstance(name, str) for name in fields)
            and json.dumps(dict(fields), ensure_ascii=False, allow_nan=False).encode()
            for vendor, fields in options.items()
        )
    except (TypeError, ValueError, RecursionError):  # UnicodeEncodeError is a ValueError
        fine = False
    if not fine:
        raise InvalidRequestError("vendor_options must hold a JSON object for each vendor")
