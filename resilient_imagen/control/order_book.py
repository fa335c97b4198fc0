"""Order book: the orders that a client knows, which of them are in force, and until when."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilient_imagen.control.order import Order

__all__ = ["InForce", "OrderBook"]

_MAX_ORDERS: Final = 200


class InForce(NamedTuple):
    """An order that was accepted, and the loop time at which it ends."""

    order: Order
    until: float


class OrderBook:
    """The accepted orders of one client. Times are loop time in seconds.

    An order ends by the client's own clock. A later order on the same topic replaces it. Its serial
    is remembered as long as the replaced one would have lasted, so that this cannot be replayed.
    """

    def __init__(self) -> None:
        self._orders: dict[str, InForce] = {}
        self._serials: dict[str, tuple[int, float]] = {}
        """The highest serial of each topic, and until when it is remembered."""

    def __iter__(self) -> Iterator[InForce]:
        """Iterate over the orders from the earliest serial to the latest."""
        return iter(sorted(self._orders.values(), key=lambda each: each.order.serial))

    @property
    def due(self) -> float:
        """The time at which the next order ends; infinity if there is none."""
        return min((each.until for each in self._orders.values()), default=math.inf)

    @property
    def is_full(self) -> bool:
        """Whether no order on another topic can be added."""
        return len(self._serials) >= _MAX_ORDERS

    def knows(self, order: Order) -> bool:
        """Return whether this order, or a later one that replaces it, was added before."""
        return self._serials.get(order.topic, (0, 0.0))[0] >= order.serial

    def add(self, order: Order, until: float) -> None:
        """Add an order, which replaces earlier ones that are about nothing else."""
        replaced = [each for each in self._orders.values() if order.replaces(each.order)]
        for each in replaced:
            del self._orders[each.order.topic]
        for each in (InForce(order, until), *replaced):
            _, kept = self._serials.get(each.order.topic, (0, 0.0))
            self._serials[each.order.topic] = order.serial, max(kept, each.until, until)
        self._orders[order.topic] = InForce(order, until)

    def end(self, now: float) -> list[Order]:
        """Remove the orders that have ended, and return them."""
        ended = [each.order for each in self if each.until <= now]
        for order in ended:
            del self._orders[order.topic]
        for topic in [topic for topic, (_, kept) in self._serials.items() if kept <= now]:
            del self._serials[topic]
        return ended

    def newest_for(self, route: str) -> InForce | None:
        """Return the latest order about a route, given as ``provider:model``."""
        found = [each for each in self if each.order.applies_to(route)]
        return found[-1] if found else None
