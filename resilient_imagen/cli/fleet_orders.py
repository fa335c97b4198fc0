"""Orders for a fleet on the command line: given through Redis, with an answer of its workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from resilient_imagen.control import Order
    from resilient_imagen.distributed import Address
    from resilient_imagen.distributed.order_board import Board, OrderBoard, WorkerReport

__all__ = ["Fleet", "StoredOrder", "obedience", "span"]

_WAITS: Final = 6.0
"""Seconds that a command waits for the workers: longer than a killed worker counts as there."""
_PAUSE: Final = 0.05
_TRIES: Final = 5
_CODES: Final = {
    "off": "IMAGE_GEN_CONTROL is off",
    "unsigned": "the signature is not that of their IMAGE_GEN_CONTROL_SECRET",
    "expired": "its time was over",
    "replaced": "a later order was there",
    "full": "too many orders",
    "no_route": "no such route",
    "invalid": "the value does not fit to their settings",
    "account": "a failure of the account; --even-account includes that",
    "forced": "forced open by their own settings",
}


@dataclass(frozen=True)
class StoredOrder:
    """An order in force, and how the workers obey it."""

    order: Order
    left_s: float
    reports: Sequence[WorkerReport]

    @property
    def sentence(self) -> str:
        """Return the order, its author, what is left of it, and how many workers obey."""
        order = self.order
        why = f" ({order.why})" if order.why else ""
        silent = [each.worker for each in self.reports if order.serial not in each.orders]
        lag = f": {', '.join(silent)}" if silent else ""
        return (
            f"{order}, ordered by {order.by}{why}, {span(self.left_s)} left: "
            f"{obedience(order.serial, self.reports)}{lag}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the order and the report of each worker, as plain JSON; None if it lags."""
        reports = {each.worker: each.orders.get(self.order.serial) for each in self.reports}
        signature = {"signature": self.order.signature != ""}  # not for copying
        return {**self.order.to_dict(), **signature, "left_s": self.left_s, "workers": reports}


def span(seconds: float) -> str:
    """Return a time as people say it."""
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 120 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.0f} h"


@dataclass(frozen=True)
class Fleet:
    """The processes that share one Redis: an `OrderPlace`."""

    address: Address
    secret: str | None

    @property
    def shown(self) -> str:
        """The place in words."""
        return f"Redis at {self.address.shown}, keys {self.address.namespace}:*"

    def read(self) -> list[tuple[Order, float]]:
        """Return the orders in force, with the seconds that are left."""
        return [(each.order, each.left_s) for each in self.stored()]

    def stored(self) -> list[StoredOrder]:
        """Return the orders in force, and how the workers obey each.

        Raises:
            ConfigurationError: Redis cannot be read.
        """
        from resilient_imagen.control.issue import in_force

        board = asyncio.run(self._read())
        return [
            StoredOrder(order, left, board.reports)
            for order, left in in_force(self._orders(board.texts), board.now)
        ]

    def put(self, draft: Order) -> tuple[str, bool]:
        """Give an order; return how many workers obey, and whether all do.

        Raises:
            ConfigurationError: Redis cannot be used.
        """
        order, reports = asyncio.run(self._put(draft))
        codes = {each.orders.get(order.serial) for each in reports}
        return obedience(order.serial, reports), codes == {"ok"}

    async def _read(self) -> Board:
        from resilient_imagen.distributed.order_board import open_board

        async with open_board(self.address) as board:
            return await board.read()

    async def _put(self, draft: Order) -> tuple[Order, list[WorkerReport]]:
        from resilient_imagen.distributed.order_board import open_board

        async with open_board(self.address, _WAITS + 5.0) as board:
            order = await self._give(board, draft)
            loop = asyncio.get_running_loop()
            give_up = loop.time() + _WAITS
            while True:
                reports = (await board.read()).reports
                waiting = [each for each in reports if order.serial not in each.orders]
                if (reports and not waiting) or loop.time() > give_up:
                    return order, reports
                await asyncio.sleep(_PAUSE)

    async def _give(self, board: OrderBoard, draft: Order) -> Order:
        from resilient_imagen.control.issue import issued
        from resilient_imagen.distributed import order_call

        for _ in range(_TRIES):
            found = await board.read()
            known = self._orders(found.texts)
            order = issued(draft, known, found.now)
            if self.secret is not None:
                order = order.signed(self.secret, self.address.namespace)
            call = order_call(
                self.address,
                order.topic,
                order.to_json(),
                serial=order.serial,
                ends=order.ends_at,
                replaced=[each.topic for each in known if order.replaces(each)],
            )
            if await board.put(call):
                return order
        raise ConfigurationError(f"Redis at {self.address.shown}: its orders change all the time")

    def _orders(self, texts: Iterable[str]) -> list[Order]:
        """Return the stored orders that workers believe."""
        from resilient_imagen.control import Order
        from resilient_imagen.control.issue import trusted

        found = []
        for text in texts:
            try:
                found.append(Order.parse(text))
            except ConfigurationError:
                continue  # damaged or forged: no worker obeys it
        return trusted(found, self.secret, self.address.namespace)


def obedience(serial: int, reports: Iterable[WorkerReport]) -> str:
    """Return how many workers obey an order, and why others do not, in words."""
    codes = Counter(each.orders.get(serial, "") for each in reports)
    total, obeys = codes.total(), codes.pop("ok", 0)
    if not total:
        return "no worker is connected"
    silent = codes.pop("", 0)
    others = [f"{count} not: {_CODES.get(code, 'refused')}" for code, count in codes.items()]
    if silent:
        others.append(f"{silent} not yet heard of")
    workers = "worker" if total == 1 else "workers"
    return "; ".join([f"{obeys} of {total} {workers} obey{'s' * (total == 1)}", *others])
