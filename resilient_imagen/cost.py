"""What requests cost, added up: for one client, and for the whole process."""

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
"""Models whose average price is kept; callers choose their names."""


@dataclass(slots=True)
class _Delivered:
    """The pictures of one model with a known price."""

    images: int = 0
    cost_usd: float = 0.0


@dataclass(slots=True)
class CostLedger:
    """A running total. What has no price is counted beside it, and is never taken for free."""

    images: int = 0
    cost_usd: float = 0.0
    """US dollars, failed requests included where their tokens have a price."""
    unpriced_images: int = 0
    """Pictures for which the model table has no price."""
    possibly_billed_requests: int = 0
    """Requests that brought no picture, and may be billed as if they had."""
    maybe_usd: float = 0.0
    """US dollars that they would cost at the price of a picture."""
    maybe_unpriced: int = 0
    """Those of them that no price is known for."""
    _delivered: dict[str, _Delivered] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, attempts: Iterable[Attempt], resolution: str) -> None:
        """Count the requests of one call; from any thread."""
        with self._lock:
            for attempt in attempts:
                self._add(attempt, resolution)

    def snapshot(self) -> SpendingSnapshot:
        """The totals, as plain JSON."""
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
        """Begin anew."""
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
        """A picture's price: from the table, else what this model's cost so far on average."""
        price = models.image_price(model, resolution)
        known = self._delivered.get(model)
        return known.cost_usd / known.images if price is None and known is not None else price


PROCESS_COSTS: Final = CostLedger()
"""Of all clients of this process, closed ones included."""

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=PROCESS_COSTS.clear)
