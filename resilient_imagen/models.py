"""Model table: all facts that depend on a model's name, one row per model.

A model that is not in the table, but whose name shows its vendor, is treated like that vendor's
newest model. Any other model is that of a service with OpenAI's API, and gets only the parameters
that every such service takes. For a model past its ``retired_on`` date, the row has its successor.

``model_file`` reads further rows. They belong to one client, so its routes carry them in the
model's name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

__all__ = [
    "MODELS",
    "VENDORS",
    "ModelInfo",
    "ModelName",
    "Prices",
    "Quality",
    "Resolution",
    "TypicalLatency",
    "clamp_quality",
    "deployment_of",
    "downgraded_resolution",
    "find_latency",
    "find_model",
    "get_model",
    "google_aspect",
    "google_image_size",
    "max_reference_bytes",
    "max_references",
    "openai_size",
    "price_per_image",
    "successor",
    "supported_options",
    "typical_latency",
    "vendor_of",
]


Resolution = Literal["1K", "2K", "4K"]
Quality = Literal["low", "medium", "high", "xhigh", "max", "auto"]


class ModelName(str):
    """A model's name in the table, and the name by which an endpoint knows it."""

    __slots__ = ("deployment", "row")
    deployment: str
    """The name to send: of a deployment on Azure, of an alias at a proxy; else the model's."""
    row: ModelInfo | None
    """The model's row in IMAGE_GEN_MODELS; None if it has none there."""

    def __new__(
        cls, model: str, deployment: str | None = None, row: ModelInfo | None = None
    ) -> Self:
        """Make a name that compares as ``model`` and is sent as ``deployment``."""
        name = super().__new__(cls, model)
        name.deployment = model if deployment is None else deployment
        name.row = row
        return name

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, ModelInfo | None]]:
        """Keep deployment and row in copies."""
        return type(self), (str(self), self.deployment, self.row)


def deployment_of(model: str) -> str:
    """Return the name to send for a model."""
    return model.deployment if isinstance(model, ModelName) else model


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of one model in US dollars."""

    source: str
    """The source of the prices: the vendor's page or a second-hand source."""
    as_of: date
    text_in: float | None = None
    """Per million input tokens of text."""
    image_in: float | None = None
    """Per million input tokens of images."""
    image_out: float | None = None
    """Per million output tokens."""
    per_image: Mapping[str, float] | None = None
    """Per delivered image, by resolution. If set, tokens are not charged."""


@dataclass(frozen=True, slots=True)
class TypicalLatency:
    """Typical time from request to image, for one model at one resolution."""

    seconds: float
    basis: Literal["vendor", "second-hand", "estimate", "operator"]
    """The kind of source: the vendor, a third party, an estimate, or IMAGE_GEN_MODELS."""
    source: str
    """The publisher, or the figure on which the estimate is based."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One row of the table: a model's limits, prices, typical latencies and retirement."""

    name: str
    vendor: str
    """``google`` or ``openai``."""
    max_references: int
    """Maximum number of reference images in one request."""
    max_reference_bytes: int | None = None
    """Maximum bytes of one reference image; None if the vendor states no limit."""
    max_total_bytes: int | None = None
    """Maximum bytes of all reference images of a request together, before base64; None if the
    vendor states no limit."""
    aspect_ratios: tuple[str, ...] = ()
    """Google: the supported aspect ratios."""
    resolutions: tuple[str, ...] = ()
    """Google: the supported values of imageSize. If empty, the field must not be sent, because the
    vendor answers with a 500."""
    sizes: tuple[tuple[int, int], ...] | None = ()
    """OpenAI: the supported sizes in pixels. If empty, any size within the limits below. None if
    size must not be sent."""
    qualities: tuple[str, ...] = ()
    """OpenAI: the supported values of quality. If empty, quality must not be sent."""
    options: frozenset[str] | None = None
    """The options of a request that the model supports, beside quality; None for all that its
    provider supports."""
    response_format: str | None = None
    """OpenAI: the value of response_format that makes the service return the image itself, and not
    its address; None if the field must not be sent."""
    prices: Prices | None = None
    typical_seconds: Mapping[str, TypicalLatency] | None = None
    """Typical seconds from request to image, by resolution, with their source; OpenAI: at quality
    high, the default. Used until a route has its own measurements. None if unknown."""
    retired_on: date | None = None
    """The day from which the vendor rejects the name."""
    successor: str | None = None
    """The model to use from that day on."""


_GEMINI_PAGE: Final = "https://ai.google.dev/gemini-api/docs/pricing"
_OPENAI_PAGE: Final = "https://platform.openai.com/docs/pricing"
_READ_ON: Final = date(2026, 11, 23)
_SECOND_HAND_SOURCE: Final = (
    "price tables of resellers and of other projects, not seen on the vendor's page"
)

_RATIOS_10: Final = (
    "1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9",
)  # fmt: skip
_RATIOS_14: Final = (*_RATIOS_10, "1:4", "4:1", "1:8", "8:1")
_THREE_SIZES: Final = ((1024, 1024), (1536, 1024), (1024, 1536))
_QUALITIES: Final = ("low", "medium", "high", "auto")

# Vendors publish no figures for latency. Those here were read on the day of _READ_ON. For 2K and 4K
# no usable figure was found: those are estimates, on the slow side.


def _seconds(
    source: str, seconds: float, estimates: Mapping[str, float] | None = None
) -> Mapping[str, TypicalLatency]:
    """Return second-hand seconds for 1K, and estimates for other resolutions."""
    return {
        "1K": TypicalLatency(seconds, "second-hand", source),
        **{
            resolution: TypicalLatency(
                estimate, "estimate", f"from second-hand {seconds:g} s at 1K"
            )
            for resolution, estimate in (estimates or {}).items()
        },
    }


def _seconds_of(
    model: str, latencies: Mapping[str, TypicalLatency]
) -> Mapping[str, TypicalLatency]:
    """Return the figures of a related model, as estimates."""
    source = f"that of {model}"
    return {
        resolution: TypicalLatency(each.seconds, "estimate", source)
        for resolution, each in latencies.items()
    }


_PRO_SECONDS: Final = _seconds(
    "16 to 23 s in openclaw issue 70423 and in 66 calls of a relay, January 2026",
    20.0,
    {"2K": 30.0, "4K": 45.0},
)
_FLASH_SECONDS: Final = _seconds(
    "12 to 13 s with minimal and 18 to 23 s with high thinking, by a relay's public code",
    18.0,
    {"2K": 27.0, "4K": 40.0},
)
_LIKE_FLASH_SECONDS: Final = _seconds_of("gemini-3.1-flash-image", _FLASH_SECONDS)
_GPT_1_5_SECONDS: Final = _seconds(
    "mean of 22 images at quality high on Azure, by a public benchmark", 46.0
)
_GPT_2_SECONDS: Final = _seconds(
    "median at quality high, by two relays, with a 95th percentile of 280 s",
    195.0,
    {"2K": 235.0, "4K": 280.0},
)
_SUNBURST_SECONDS: Final = _seconds(
    "33 to 70 s for 1024x1536 at quality high, by chatgpt2api issue 34",
    50.0,
    {"2K": 60.0, "4K": 75.0},
)
_LIKE_SUNBURST_SECONDS: Final = _seconds_of("gpt-image-2.5-sunburst", _SUNBURST_SECONDS)
"""Also for 2.6, which is faster according to the vendor."""

_tokens = partial(Prices, source=_OPENAI_PAGE, as_of=_READ_ON, text_in=5.0, image_in=8.0)


_gemini = partial(
    ModelInfo,
    vendor="google",
    max_references=14,
    max_total_bytes=70_000_000,  # 100 MB a request, of which base64 takes a third
    aspect_ratios=_RATIOS_10,
    resolutions=("1K", "2K", "4K"),
    typical_seconds=_LIKE_FLASH_SECONDS,
)
_gpt = partial(
    ModelInfo,
    vendor="openai",
    max_references=16,
    max_reference_bytes=50_000_000,
    qualities=_QUALITIES,
    prices=_tokens(image_out=30.0),
    typical_seconds=_LIKE_SUNBURST_SECONDS,
)


def _per_image(dollars: Mapping[str, float], source: str = _GEMINI_PAGE) -> Prices:
    return Prices(source, _READ_ON, per_image=dollars)


def _retired(name: str, retired_on: date, successor: str) -> ModelInfo:
    """Return a row for a retired model."""
    make = _gemini if successor.startswith("gemini-") else _gpt
    return make(name, prices=None, typical_seconds=None, retired_on=retired_on, successor=successor)


_GEMINI_PRO_PRICES: Final = _per_image({"1K": 0.134, "2K": 0.134, "4K": 0.24})
_gpt_high_quality = partial(_gpt, qualities=(*_QUALITIES, "xhigh", "max"))
_retiring = partial(
    _gpt,
    sizes=_THREE_SIZES,
    prices=_tokens(source=_SECOND_HAND_SOURCE, image_out=32.0),
    typical_seconds=_seconds_of("gpt-image-1.5", _GPT_1_5_SECONDS),
    retired_on=date(2026, 12, 1),
)
_GEMINI_FLASH_PRICES: Final = _per_image(
    {"1K": 0.067, "2K": 0.101, "4K": 0.151}, _SECOND_HAND_SOURCE
)
_GEMINI_LITE_PRICES: Final = _per_image({"1K": 0.0336}, _SECOND_HAND_SOURCE)
_GEMINI_1K_PRICES: Final = _per_image({"1K": 0.0336})  # 2K and 4K: no price was found anywhere

_ROWS: Final = (
    _gemini("gemini-3-pro-image", prices=_GEMINI_PRO_PRICES, typical_seconds=_PRO_SECONDS),
    _gemini(
        "nano-banana-pro-preview",
        prices=_GEMINI_PRO_PRICES,
        typical_seconds=_seconds_of("gemini-3-pro-image", _PRO_SECONDS),
    ),
    _gemini("gemini-nano-banana-2.1", aspect_ratios=_RATIOS_14, prices=_GEMINI_1K_PRICES),
    _gemini(
        "gemini-3.1-flash-image",
        aspect_ratios=_RATIOS_14,
        prices=_GEMINI_FLASH_PRICES,
        typical_seconds=_FLASH_SECONDS,
    ),
    _gemini(
        "gemini-3.1-flash-lite-image",
        aspect_ratios=_RATIOS_14,
        resolutions=("1K",),
        prices=_GEMINI_LITE_PRICES,
    ),
    _gemini("gemini-2.5-flash-image", resolutions=(), prices=_per_image({"1K": 0.039})),
    _retired("gemini-3-pro-image-preview", date(2026, 6, 25), "gemini-3-pro-image"),
    _retired("gemini-3.1-flash-image-preview", date(2026, 6, 25), "gemini-nano-banana-2.1"),
    _retired("gemini-2.5-flash-image-preview", date(2026, 1, 15), "gemini-2.5-flash-image"),
    _retired("imagen-4.0-ultra-generate-001", date(2026, 8, 17), "gemini-3-pro-image"),
    _retired("imagen-4.0-generate-001", date(2026, 8, 17), "gemini-3-pro-image"),
    _retired("imagen-4.0-fast-generate-001", date(2026, 8, 17), "gemini-nano-banana-2.1"),
    _gpt("gpt-image-2.6-flare"),
    _gpt("gpt-image-2.6-sunburst"),
    _gpt_high_quality("gpt-image-2.5-flare"),
    _gpt_high_quality("gpt-image-2.5-flare-2026-09-08"),
    _gpt_high_quality("gpt-image-2.5-sunburst", typical_seconds=_SUNBURST_SECONDS),
    _gpt_high_quality("gpt-image-2.5-sunburst-2026-09-08", typical_seconds=_SUNBURST_SECONDS),
    _gpt("gpt-image-2", typical_seconds=_GPT_2_SECONDS),
    _gpt("gpt-image-2-2026-04-21", typical_seconds=_GPT_2_SECONDS),
    _retiring("gpt-image-1.5", successor="gpt-image-2", typical_seconds=_GPT_1_5_SECONDS),
    _retiring("chatgpt-image-latest", successor="gpt-image-2"),
    _retiring(
        "gpt-image-1-mini",
        successor="gpt-image-2.5-flare",
        prices=_tokens(source=_SECOND_HAND_SOURCE, text_in=2.0, image_in=2.5, image_out=8.0),
    ),
    _retired("gpt-image-1", date(2026, 10, 23), "gpt-image-2"),
    _retired("dall-e-3", date(2026, 5, 12), "gpt-image-2"),
    _retired("dall-e-2", date(2026, 5, 12), "gpt-image-2"),
)

MODELS: Final[Mapping[str, ModelInfo]] = {row.name: row for row in _ROWS}

_NEWEST: Final[Mapping[str, ModelInfo]] = {
    "google": MODELS["gemini-nano-banana-2.1"],
    "openai": MODELS["gpt-image-2.6-flare"],
}
_COMPATIBLE: Final = ModelInfo(
    "", vendor="openai", max_references=0, sizes=None, options=frozenset()
)
"""A model of another vendor with OpenAI's API. Such services refuse parameters of GPT Image, and
few of them take references."""
VENDORS: Final = frozenset(_NEWEST)
"""Vendors with models in the table."""
_LEAST_REFERENCE_BYTES: Final = min(
    row.max_reference_bytes for row in _ROWS if row.max_reference_bytes is not None
)
_FAMILIES: Final = (
    ("gemini-", "google"),
    ("imagen-", "google"),
    ("nano-banana", "google"),
    ("gpt-", "openai"),
    ("dall-e-", "openai"),
    ("chatgpt-", "openai"),
)


def find_model(name: str) -> ModelInfo | None:
    """Return a model's row, from IMAGE_GEN_MODELS or else from the table; None if there is none."""
    own = name.row if isinstance(name, ModelName) else None
    return MODELS.get(name) if own is None else own


def vendor_of(name: str) -> str | None:
    """Return ``google`` or ``openai``, by the table or by the model family in the name, or None."""
    row = find_model(name)
    if row is not None:
        return row.vendor
    return next((vendor for family, vendor in _FAMILIES if name.startswith(family)), None)


def successor(name: str, today: date) -> str | None:
    """Return the available successor of a retired model; None if ``name`` is not retired.

    A name is replaced from the day of its retirement on; ``today`` is the current date.
    """
    row = find_model(name)
    replacement = None
    while row is not None and row.retired_on is not None and row.retired_on <= today:
        replacement = row.successor
        row = find_model(replacement) if replacement else None
    return replacement


def get_model(vendor: str, name: str) -> ModelInfo | None:
    """Return the row of a vendor's model, else a row that suits its name.

    Return None for a vendor that is not in the table.
    """
    return _row(name, vendor) if vendor in _NEWEST else None


def max_reference_bytes(vendor: str, name: str) -> int:
    """Return the maximum bytes of one reference image for a model.

    For a vendor that is not in the table, this is the lowest maximum of all rows.
    """
    row = get_model(vendor, name)
    limits = (row.max_reference_bytes, row.max_total_bytes) if row is not None else ()
    return min(filter(None, limits), default=_LEAST_REFERENCE_BYTES)


def max_references(routes: Iterable[tuple[str, str]]) -> int | None:
    """Return the highest reference limit of these vendors and models; None if one has no limit."""
    rows = [get_model(*route) for route in routes]
    known = [row.max_references for row in rows if row is not None]
    return max(known) if known and len(known) == len(rows) else None


def google_aspect(model: str, aspect_ratio: str) -> str:
    """Return the model's supported ratio that is nearest to ``aspect_ratio`` (``"9:16"``)."""
    wanted = _log_ratio(*_numbers(aspect_ratio))
    known = _row(model, "google").aspect_ratios
    return min(known, key=lambda ratio: abs(_log_ratio(*_numbers(ratio)) - wanted))


def google_image_size(model: str, resolution: str) -> str | None:
    """Return the imageSize to send for a resolution; None if the field must not be sent.

    For a model without the requested resolution, it is the model's largest.
    """
    return _image_size(_row(model, "google"), resolution)


def _image_size(row: ModelInfo, resolution: str) -> str | None:
    known = row.resolutions
    if not known:
        return None
    return resolution if resolution in known else known[-1]


def downgraded_resolution(vendor: str, model: str, resolution: str) -> str | None:
    """Return the lower resolution that a model delivers instead of the requested one, else None."""
    row = get_model(vendor, model)
    best = resolution if row is None else _best_resolution(row, resolution)
    return None if best == resolution else best


def _best_resolution(row: ModelInfo, resolution: str) -> str:
    """Return the resolution that a model delivers if ``resolution`` is requested."""
    if row.vendor == "google":
        return _image_size(row, resolution) or "1K"
    return resolution if row.sizes == () else "1K"


def price_per_image(row: ModelInfo, resolution: str) -> float | None:
    """Return the dollars for one image; None if the model does not charge by image."""
    if row.prices is None or row.prices.per_image is None:
        return None
    return row.prices.per_image.get(_best_resolution(row, resolution))


def find_latency(vendor: str, model: str, resolution: str) -> TypicalLatency | None:
    """Return the typical seconds for an image by the table, with their source; None if unknown."""
    row = get_model(vendor, model)
    if row is None or row.typical_seconds is None:
        return None
    return row.typical_seconds.get(downgraded_resolution(vendor, model, resolution) or resolution)


def typical_latency(vendor: str, model: str, resolution: str) -> float | None:
    """Return the typical seconds for an image by the table; None if unknown."""
    found = find_latency(vendor, model, resolution)
    return None if found is None else found.seconds


_STEP: Final = 16
_MAX_EDGE: Final = 3840
_MIN_PIXELS: Final = 655_360
_MAX_PIXELS: Final = 8_294_400
_MAX_RATIO: Final = 3
_SIDES: Final = {"1K": 1024, "2K": 2048, "4K": 4096}


def openai_size(model: str, aspect_ratio: str, resolution: str) -> tuple[int, int] | None:
    """Return the width and height in pixels to request; None if the field must not be sent.

    For models that accept any size: exactly the requested ratio, in the size nearest to the
    resolution's area within their limits; ratios beyond 3:1 become 3:1. For other models: the
    nearest supported size.
    """
    width, height = _numbers(aspect_ratio)
    sizes = _row(model, "openai").sizes
    if sizes is None:
        return None
    if sizes:
        wanted = _log_ratio(width, height)
        return min(sizes, key=lambda size: abs(_log_ratio(*size) - wanted))
    if max(width, height) > _MAX_RATIO * min(width, height):
        width, height = (_MAX_RATIO, 1) if width > height else (1, _MAX_RATIO)
    return _free_size(width, height, _SIDES[resolution] ** 2)


def _free_size(width: int, height: int, area: int) -> tuple[int, int]:
    """Return the size of the ratio nearest in area, with both sides divisible by 16, in limits."""
    shared = math.gcd(width, height)
    unit = (_STEP * width // shared, _STEP * height // shared)
    pixels = unit[0] * unit[1]
    smallest = math.ceil(math.sqrt(_MIN_PIXELS / pixels))
    largest = min(_MAX_EDGE // max(unit), math.isqrt(_MAX_PIXELS // pixels))
    times = min(max(round(math.sqrt(area / pixels)), smallest), largest)
    return unit[0] * times, unit[1] * times


def clamp_quality(model: str, quality: str) -> str | None:
    """Return the quality to send; None if the field must not be sent.

    It is the requested one if the model supports it, else ``high``, or the model's last.
    """
    known = _row(model, "openai").qualities
    if not known or quality in known:
        return quality if known else None
    return "high" if "high" in known else known[-1]


def supported_options(vendor: str, model: str, options: Collection[str]) -> frozenset[str]:
    """Return those of a provider's options that the model supports, too."""
    row = get_model(vendor, model)
    if row is None or row.options is None:
        return frozenset(options)
    own = row.options | {"quality"} if row.qualities else row.options
    return own.intersection(options)


def _row(model: str, vendor: str) -> ModelInfo:
    """Return the model's row, else the row that applies to models of such a name."""
    row = find_model(model)
    if row is not None and row.vendor == vendor:
        return row
    return _COMPATIBLE if vendor == "openai" and vendor_of(model) != vendor else _NEWEST[vendor]


def _numbers(aspect_ratio: str) -> tuple[int, int]:
    width, height = aspect_ratio.split(":")
    return int(width), int(height)


def _log_ratio(width: int, height: int) -> float:
    """Return the logarithm of the ratio, so that 2:1 and 1:2 are equally far from 1:1."""
    return math.log(width / height)
