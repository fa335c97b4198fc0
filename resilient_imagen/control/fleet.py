"""Orders for all processes that share one Redis: give one, and see which processes obey."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from resilient_imagen.control.issue import (
    book_of,
    distrusted,
    issued,
    seconds_left,
    signer_of,
    trusted,
)
from resilient_imagen.control.order import Order
from resilient_imagen.distributed import order_call
from resilient_imagen.distributed.fleet_status import without_account
from resilient_imagen.distributed.order_board import open_board
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.telemetry.sanitize import safe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from resilient_imagen.control.order_book import OrderBook
    from resilient_imagen.distributed import Address
    from resilient_imagen.distributed.order_board import OrderBoard, Stage, WorkerReport

__all__ = ["FleetOrders", "PastOrder", "SharedOrder", "StoredOrders"]

_WAITS: Final = 6.0
"""Seconds to wait for the workers: longer than a killed worker is still counted."""
_CONNECTS: Final = 5.0
_PAUSE: Final = 0.05
_TRIES: Final = 5
_MAX_CAUSES: Final = 5
"""Number of causes in an answer; forged reports may contain any number."""
_CODES: Final = {
    "off": "IMAGE_GEN_CONTROL is off",
    "unsigned": "it is not signed with their IMAGE_GEN_CONTROL_SECRET",
    "expired": "its time was over",
    "replaced": "a later order was known",
    "over": "it is over there, or a later order has replaced it",
    "full": "too many orders",
    "no_route": "no such route",
    "invalid": "the value contradicts their settings",
    "account": "a failure of the account; --even-account includes that",
    "forced": "forced open by their own settings",
}
_ENDED: Final = frozenset({"over", "expired", "replaced"})
"""Codes of any order that has ended, also of one that was obeyed."""


@dataclass(frozen=True)
class SharedOrder:
    """An order in Redis, and how the workers obey it."""

    order: Order
    left_s: float
    """Seconds until it ends."""
    reports: Sequence[WorkerReport]
    """The last report of each present worker."""

    @property
    def codes(self) -> dict[str, str | None]:
        """The answer of each worker: ok, the code of its refusal, or None without an answer.

        A worker that has read the order and no longer reports about it has the code over.
        """
        serial = self.order.serial
        return {
            each.worker: each.orders.get(serial, "over" if each.known >= serial else None)
            for each in self.reports
        }

    @property
    def workers(self) -> tuple[int, int]:
        """The number of workers that obey, and the number of all workers."""
        return list(self.codes.values()).count("ok"), len(self.reports)

    @property
    def is_obeyed(self) -> bool:
        """Whether there are workers, and all of them obey."""
        return set(self.codes.values()) == {"ok"}

    @property
    def answer(self) -> str:
        """A sentence with the number of workers that obey, and the causes of the others."""
        codes = list(self.codes.values())
        total, obeys, lag = len(codes), codes.count("ok"), codes.count(None)
        if not total:
            return "no worker is connected"
        causes = Counter(map(self._cause, self.reports, codes))
        del causes[None]
        shown = causes.most_common(_MAX_CAUSES)
        others = [f"{n} not: {cause}" for cause, n in shown]
        if more := causes.total() - sum(n for _, n in shown):
            others.append(f"{more} not, for other causes")
        if lag:
            others.append(f"{lag} without an answer yet")
        are = "worker obeys" if total == 1 else "workers obey"
        return "; ".join([f"{obeys} of {total} {are}", *others])

    @property
    def refusals(self) -> str:
        """The number of workers that ignored it, with the causes; empty if none reports that.

        An order that has ended before a worker read it was not ignored.
        """
        codes = (None if code in _ENDED else code for code in self.codes.values())
        causes = Counter(map(self._cause, self.reports, codes))
        del causes[None]
        if not causes:
            return ""
        workers = "worker" if len(self.reports) == 1 else "workers"
        shown = "; ".join(str(cause) for cause, _ in causes.most_common(_MAX_CAUSES))
        return f"ignored by {causes.total()} of {len(self.reports)} {workers}: {shown}"

    def _cause(self, report: WorkerReport, code: str | None) -> str | None:
        """Return why a worker does not obey, in its own words if it reported any, else None."""
        if code in {"ok", None}:
            return None
        own = report.causes.get(self.order.serial)
        return _CODES.get(code or "", "refused") if own is None else safe(own)

    def to_json(self) -> dict[str, Any]:
        """Return the order and the answers of the workers, as plain JSON, without its signature."""
        found = self.order.to_dict()
        signed = found.pop("signature") != ""
        return {
            **found,
            "signed": signed,
            "left_s": self.left_s,
            "workers": self.codes,
            "answer": self.answer,
        }


class PastOrder(NamedTuple):
    """An order that was given, whether processes obeyed it or not."""

    order: Order
    age_s: float
    """Seconds since it was given."""
    is_trusted: bool
    """Whether processes with the secret believe it."""
    refusals: str
    """How many workers ignored it and why; empty if no present worker reports that."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON, without its signature."""
        found = self.order.to_dict()
        del found["signature"]
        return {**found, "age_s": self.age_s, "trusted": self.is_trusted}


class StoredOrders(NamedTuple):
    """The orders in Redis at one moment."""

    orders: list[SharedOrder]
    """The orders in force."""
    distrusted: int
    """Number of other orders, whose signature does not match the secret."""
    book: OrderBook
    """All orders that processes have accepted, also those that acted once."""
    history: list[PastOrder]
    """The last orders, the latest first."""

    def hold_on(self, route: str) -> SharedOrder | None:
        """Return the order that keeps a route open or closed in at least one process, if any.

        Args:
            route: ``provider:model``.
        """
        newest = self.book.newest_for(route)
        held = (each for each in self.orders if newest is not None and each.order == newest.order)
        return next((each for each in held if each.workers[0]), None)


@dataclass(frozen=True)
class FleetOrders:
    """The orders of one fleet, for an operator's tool.

    Args:
        address: Redis, with the namespace of the fleet.
        secret: The value of IMAGE_GEN_CONTROL_SECRET; None if orders are not signed.
    """

    address: Address
    secret: str | None

    async def read(self) -> list[SharedOrder]:
        """Return the orders in force.

        Raises:
            ConfigurationError: Redis cannot be read.
        """
        return (await self.read_all()).orders

    async def read_all(self, history: int = 0) -> StoredOrders:
        """Return the orders in force, and the number of those with another signature.

        Args:
            history: How many of the last orders to return, too; 100 are kept, for a week.

        Raises:
            ConfigurationError: Redis cannot be read.
        """
        async with open_board(self.address, _CONNECTS) as board:
            found = await board.read()
            past = await board.history(history) if history else []
        book = book_of(self._trusted(found.texts), found.now)
        return StoredOrders(
            [
                SharedOrder(each.order, seconds_left(each.order, found.now), found.reports)
                for each in book
                if each.order.lasts
            ],
            distrusted(_parsed(found.texts), self.secret, self.address.namespace, found.now),
            book,
            [
                PastOrder(
                    order,
                    max(0.0, (found.now - order.serial) / 1e6),
                    self._trusts(order),
                    SharedOrder(order, 0.0, found.reports).refusals,
                )
                for order in _parsed(past)
            ],
        )

    async def give(
        self, draft: Order, on_stage: Callable[[Stage], object] | None = None
    ) -> SharedOrder:
        """Give an order to all workers, and wait until each has answered, for 6 seconds at most.

        If all workers refuse its value, an earlier order about the same setting is stored again.

        Args:
            draft: The order; its serial is replaced, and it is signed. A route may have the
                account's identifier that ``status`` shows; the order is about all accounts.
            on_stage: Called at each `Stage`, so that the caller knows after an error or a
                cancellation whether workers obey the order.

        Raises:
            ConfigurationError: Redis cannot be used.
        """
        async with open_board(self.address, _CONNECTS + _WAITS) as board:
            if "@" in draft.target:
                shared = await board.resources()
                draft = replace(draft, target=without_account(draft.target, shared))
            order, known = await self._put(board, draft, on_stage or _ignore)
            given = await self._answers(board, order)
            if set(given.codes.values()) == {"invalid"}:
                await self._restore(board, order, known)
        return given

    async def _answers(self, board: OrderBoard, order: Order) -> SharedOrder:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _WAITS
        while True:
            given = SharedOrder(order, order.ttl, (await board.read()).reports)
            waits = not given.reports or None in given.codes.values()
            if not waits or loop.time() > give_up:
                return given
            await asyncio.sleep(_PAUSE)

    async def _restore(self, board: OrderBoard, refused: Order, known: Iterable[Order]) -> None:
        """Store the order again that a refused one has replaced, for the rest of its time."""
        found = await board.read()
        if refused.serial not in (each.serial for each in self._trusted(found.texts)):
            return  # a later order has replaced it
        for before in known:
            left = (before.ends_at - found.now) // 1_000_000
            if refused.replaces(before) and left > 0:
                await self._put(board, replace(before, ttl=left), _ignore, restored=True)

    async def _put(
        self,
        board: OrderBoard,
        draft: Order,
        on_stage: Callable[[Stage], object],
        *,
        restored: bool = False,
    ) -> tuple[Order, list[Order]]:
        """Store an order, and return it with those that workers believed before.

        Orders with another signature, or none, stay beside it: some workers may believe them.
        """
        for _ in range(_TRIES):
            found = await board.read()
            known = _parsed(found.texts)
            order = issued(draft, known, found.now)
            if self.secret is not None:
                order = order.signed(self.secret, self.address.namespace)
            replaced = [each for each in known if order.replaces(each)]
            call = order_call(
                self.address,
                self._field(order),
                order.to_json(),
                serial=order.serial,
                # Kept as long as the replaced orders, so that absent workers do not obey those
                # later.
                ends=max(each.ends_at for each in (order, *replaced)),
                replaced=[self._field(each) for each in replaced],
                restored=restored,
            )
            if await board.put(call, on_stage):
                return order, self._trusted(found.texts)
        raise ConfigurationError(
            f"Redis at {self.address.shown}: its orders changed during every attempt"
        )

    def _trusts(self, order: Order) -> bool:
        return bool(trusted([order], self.secret, self.address.namespace))

    def _field(self, order: Order) -> str:
        """Return where an order of this secret is stored; one of another secret is elsewhere."""
        return f"{order.topic} {signer_of(self.secret)}".rstrip()

    def _trusted(self, texts: Iterable[str]) -> list[Order]:
        """Return the stored orders that workers believe."""
        return trusted(_parsed(texts), self.secret, self.address.namespace)


def _ignore(_: Stage) -> None:
    """Ignore a stage."""


def _parsed(texts: Iterable[str]) -> list[Order]:
    found = []
    for text in texts:
        try:
            found.append(Order.parse(text))
        except ConfigurationError:
            continue  # damaged or forged: no worker obeys it
    return found
