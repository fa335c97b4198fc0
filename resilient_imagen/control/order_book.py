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

    def __len__(self) -> int:
        """Return the number of orders."""
        return len(self._orders)

    def has(self, order: Order) -> bool:
        """Return whether this order is in force."""
        known = self._orders.get(order.topic)
        return known is not None and known.order.serial == order.serial

    def knows_later(self, order: Order) -> bool:
        """Return whether this order was in force before, or is replaced by a later one."""
        topics = {order.topic, f"breaker {order.target.partition(':')[0]}"}
        return any(self._serials.get(topic, (0, 0.0))[0] >= order.serial for topic in topics)

    def is_full_for(self, order: Order) -> bool:
        """Return whether there are too many topics to add one for this order."""
        return order.topic not in self._serials and len(self._serials) >= _MAX_ORDERS

    def add(self, order: Order, until: float) -> None:
        """Add an order; it replaces earlier orders on the same topic.

        If it ends an order for all routes of a provider for one of them, it lasts as long as that.
        """
        if not order.lasts:
            wider = [each.until for each in self if each.order.applies_to(order.target)]
            until = max([until, *wider])
        replaced = [each for each in self._orders.values() if order.replaces(each.order)]
        for each in replaced:
            del self._orders[each.order.topic]
        for each in (InForce(order, until), *replaced):
            _, kept = self._serials.get(each.order.topic, (0, 0.0))
            self._serials[each.order.topic] = order.serial, max(kept, each.until, until)
        self._orders[order.topic] = InForce(order, until)

    def withdraw(self, later: Order) -> list[Order]:
        """Remove the orders that a later order had replaced before it ended, and return them."""
        replaced = [each.order for each in self if later.replaces(each.order)]
        for order in replaced:
            del self._orders[order.topic]
        return replaced

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
