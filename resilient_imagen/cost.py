"""Cost: what a request used, its price, and the totals of a client and of the whole process."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final, TypeVar

from resilient_imagen import models
from resilient_imagen._validation import check_types

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilient_imagen.result import Attempt, Usage
    from resilient_imagen.snapshots import SpendingSnapshot

__all__ = [
    "PROCESS_COSTS",
    "USUAL_TOKENS",
    "CostLedger",
    "TokenUsage",
    "cost_usd",
    "image_price",
    "priced_usage",
    "sum_known",
    "usual_image_cost",
]

_MAX_MODELS: Final = 256
"""Models whose average price is kept; bounded because callers choose the names."""


def image_price(model: str, resolution: str) -> float | None:
    """Return the price of one image in US dollars, for a model that charges by image; else None."""
    row = models.find_model(model)
    return None if row is None else models.price_per_image(row, resolution)


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """The token and image counts of a request, as the vendor reported them; None if not reported.

    Raises:
        TypeError: A field is neither an int nor None.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    input_image_tokens: int | None = None
    """The part of the input tokens that encodes images; its price differs."""
    billed_images: int = 1
    """Images that the vendor charges for, where it charges by the image."""

    def __post_init__(self) -> None:
        """Check the types here, where the provider's author sees the mistake."""
        check_types(self, dict.fromkeys(_COUNTS, int), optional=_OPTIONAL_COUNTS)


_COUNTS: Final = tuple(each.name for each in fields(TokenUsage))
_OPTIONAL_COUNTS: Final = frozenset(_COUNTS) - {"billed_images"}


def cost_usd(
    model: str, usage: TokenUsage, resolution: str, *, delivered: bool = True
) -> float | None:
    """Return the cost of one response in US dollars; None if a price or a count is unknown.

    Args:
        model: The requested model; its prices are used even if the response names another model.
        usage: Token counts for a model that charges by token, images for one that charges by image.
        resolution: The requested resolution, for a model that charges by image.
        delivered: False if no image was delivered: no image is charged, and tokens only if they
            have a price.
    """
    row = models.find_model(model)
    if row is None or row.prices is None:
        return None
    prices = row.prices
    if prices.per_image is not None:
        each = models.price_per_image(row, resolution)
        return None if each is None or not delivered else round(each * usage.billed_images, 6)
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    pictures = min(usage.input_image_tokens or 0, usage.input_tokens)
    millionths = (
        (usage.input_tokens - pictures) * (prices.text_in or 0.0)
        + pictures * (prices.image_in or 0.0)
        + usage.output_tokens * (prices.image_out or 0.0)
    )
    return round(millionths / 1_000_000, 6)


USUAL_TOKENS: Final = TokenUsage(input_tokens=0, output_tokens=6000)
"""The tokens of a portrait image of high quality, where no image was seen."""


def usual_image_cost(model: str, resolution: str) -> float | None:
    """Return the cost of one image in US dollars by the model table; None if it has no price.

    Args:
        model: The requested model. If it charges by token, the image has `USUAL_TOKENS`.
        resolution: The requested resolution.
    """
    return cost_usd(model, USUAL_TOKENS, resolution)


def priced_usage(
    tokens: TokenUsage,
    *,
    provider: str,
    model: str,
    resolution: str,
    response_model: str | None = None,
    delivered: bool = True,
) -> Usage:
    """Return the counts of a response as results and errors have them, with their cost.

    Args:
        tokens: The counts.
        provider: The provider's name.
        model: The requested model, by which the price is found.
        resolution: The requested resolution.
        response_model: The model that the response names; None means the requested one.
        delivered: Whether an image was delivered.
    """
    return {
        "provider": provider,
        "model": response_model or model,
        "input_tokens": tokens.input_tokens,
        "output_tokens": tokens.output_tokens,
        "total_tokens": tokens.total_tokens,
        "cost_usd": cost_usd(model, tokens, resolution, delivered=delivered),
    }


_Number = TypeVar("_Number", int, float)


def sum_known(values: Iterable[_Number | None]) -> _Number | None:
    """Return the sum; None if one of the values is unknown."""
    known = list(values)
    return None if None in known else sum(filter(None, known))


@dataclass(slots=True)
class _Delivered:
    """Images of one model that were delivered with a known price."""

    images: int = 0
    cost_usd: float = 0.0


@dataclass(slots=True)
class CostLedger:
    """A running total. Images and requests without a known price are counted separately."""

    images: int = 0
    cost_usd: float = 0.0
    """US dollars, including failed requests whose tokens have a price."""
    unpriced_images: int = 0
    """Images for which the model table has no price."""
    possibly_billed_requests: int = 0
    """Requests that delivered no image and may have been billed."""
    maybe_usd: float = 0.0
    """US dollars that these requests would cost at the price of an image."""
    maybe_unpriced: int = 0
    """Number of these requests without a known price."""
    _delivered: dict[str, _Delivered] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, attempts: Iterable[Attempt], resolution: str) -> None:
        """Add the requests of one call; may be called from any thread."""
        with self._lock:
            for attempt in attempts:
                self._add(attempt, resolution)

    def snapshot(self) -> SpendingSnapshot:
        """Return the totals as plain JSON."""
        with self._lock:
            return {
                "images": self.images,
                "cost_usd": round(self.cost_usd, 6),
                "unpriced_images": self.unpriced_images,
                "maybe_billed": {
                    "requests": self.possibly_billed_requests,
                    "cost_usd": round(self.maybe_usd, 6),
                    "unpriced": self.maybe_unpriced,
                },
            }

    def clear(self) -> None:
        """Reset all totals."""
        self.__init__()  # type: ignore[misc]

    def _add(self, attempt: Attempt, resolution: str) -> None:
        cost = None if attempt.usage is None else attempt.usage["cost_usd"]
        delivered = attempt.images if attempt.reason is None else 0
        self.images += delivered
        if cost is not None:
            self.cost_usd += cost
            if delivered:
                known = self._delivered.get(attempt.model)
                if known is None and len(self._delivered) < _MAX_MODELS:
                    known = self._delivered[attempt.model] = _Delivered()
                if known is not None:
                    known.images += delivered
                    known.cost_usd += cost
        elif delivered:
            self.unpriced_images += delivered
        elif attempt.may_have_been_billed:
            price = self._usual_price(attempt.model, resolution)
            self.possibly_billed_requests += 1
            self.maybe_usd += price or 0.0
            self.maybe_unpriced += price is None

    def _usual_price(self, model: str, resolution: str) -> float | None:
        """Return an image's price from the table, else this model's average price so far."""
        price = image_price(model, resolution)
        known = self._delivered.get(model)
        return known.cost_usd / known.images if price is None and known is not None else price


PROCESS_COSTS: Final = CostLedger()
"""Totals of all clients of this process, including closed ones."""

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=PROCESS_COSTS.clear)
