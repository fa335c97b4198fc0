"""Cost ledger: the total cost of requests, for one client and for the whole process."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from resilient_imagen import models

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilient_imagen.result import Attempt
    from resilient_imagen.snapshots import SpendingSnapshot

__all__ = ["PROCESS_COSTS", "CostLedger"]


_MAX_MODELS: Final = 256
"""Models whose average price is kept; bounded because callers choose the names."""


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
    """How many of these requests have no known price."""
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
        delivered = attempt.reason is None
        self.images += delivered
        if cost is not None:
            self.cost_usd += cost
            if delivered:
                known = self._delivered.get(attempt.model)
                if known is None and len(self._delivered) < _MAX_MODELS:
                    known = self._delivered[attempt.model] = _Delivered()
                if known is not None:
                    known.images += 1
                    known.cost_usd += cost
        elif delivered:
            self.unpriced_images += 1
        elif attempt.may_have_been_billed:
            price = self._usual_price(attempt.model, resolution)
            self.possibly_billed_requests += 1
            self.maybe_usd += price or 0.0
            self.maybe_unpriced += price is None

    def _usual_price(self, model: str, resolution: str) -> float | None:
        """Return an image's price from the table, else this model's average price so far."""
        price = models.image_price(model, resolution)
        known = self._delivered.get(model)
        return known.cost_usd / known.images if price is None and known is not None else price


PROCESS_COSTS: Final = CostLedger()
"""Totals of all clients of this process, including closed ones."""

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=PROCESS_COSTS.clear)
