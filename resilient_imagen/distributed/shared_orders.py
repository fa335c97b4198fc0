"""Shared orders: transport of operators' orders to all workers, and of their reports.

This module transports orders as strings, and does not interpret them. An order is published, so
that workers read it within milliseconds, and read again at the next heartbeat if the message is
lost. Redis is not needed until an order ends: its serial and its lifetime are part of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.distributed.participant import PendingCommand
from resilient_imagen.distributed.scripts import ORDER, ORDERS, ScriptCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from resilient_imagen.distributed.breaker_record import BreakerRecord
    from resilient_imagen.distributed.coordinator import RedisCoordinator
    from resilient_imagen.distributed.redis_address import Address

__all__ = ["SharedOrders", "history_key", "order_call", "order_keys"]

_MESSAGE: Final = b'{"orders":'


def order_keys(address: Address) -> tuple[str, ...]:
    """Return the keys of `orders.lua`: orders, reports of workers, and times of heartbeats."""
    return tuple(address.key(kind, "fleet") for kind in ("orders", "obeyed", "heard"))


def history_key(address: Address) -> str:
    """Return the key of the last orders."""
    return address.key("history", "fleet")


def order_call(
    address: Address,
    field: str,
    text: str,
    *,
    serial: int,
    ends: int,
    replaced: Iterable[str],
    restored: bool = False,
) -> ScriptCall:
    """Return the command that gives an order to all workers; see `order.lua`.

    Args:
        address: The address of Redis.
        field: Where the order is stored, in place of an earlier one.
        text: The order.
        serial: Its serial.
        ends: When it may be removed, in microseconds since 1970.
        replaced: Fields to remove.
        restored: Whether it was given earlier, so that the history has it already.
    """
    arguments = {
        "channel": address.channel,
        "field": field,
        "order": text,
        "serial": str(serial),
        "ends": str(ends),
        "replaced": list(replaced),
        "restored": restored,
    }
    return ScriptCall(ORDER, (order_keys(address)[0], history_key(address)), arguments)


class SharedOrders:
    """A `Participant` that reads orders and reports which are obeyed.

    Args:
        coordinator: The connection to Redis.
        deliver: Called on the loop with the texts of all stored orders, and the server's time in
            microseconds since 1970.
        report: Returns the fields of the worker's report, ready for JSON: see `parse_report`.
    """

    resource = "orders"
    settings = ""

    def __init__(
        self,
        coordinator: RedisCoordinator,
        deliver: Callable[[list[str], int], None],
        report: Callable[[], Mapping[str, Mapping[int, str]]],
    ) -> None:
        self._coordinator = coordinator
        self._deliver = deliver
        self._report = report
        self._keys = order_keys(coordinator.address)
        self._known = "0"
        """The highest serial that Redis had when the orders were read."""
        self._reported = ""
        coordinator.on_message = self._on_message
        coordinator.add(self)

    def heartbeat(self) -> PendingCommand:
        """Return the command that reports, and reads the orders if they have changed."""
        return PendingCommand(self._check_in(), self._answered)

    def on_update(self, record: BreakerRecord) -> None:
        """Do nothing: records are about breakers."""

    def on_connected(self) -> None:
        """Do nothing: the heartbeat was answered."""

    def on_disconnected(self) -> None:
        """Read all orders after the next connection, which may be to other data."""
        self._known = "0"

    def release_commands(self) -> Iterable[ScriptCall]:
        """Return the command that removes this worker's report."""
        return [self._check_in(leaving=True)]

    def _check_in(self, *, leaving: bool = False) -> ScriptCall:
        self._reported = json.dumps({"known": self._known, **self._report()})
        arguments = {
            "worker": self._coordinator.worker,
            "report": self._reported,
            "known": self._known,
            "leaving": leaving,
        }
        return ScriptCall(ORDERS, self._keys, arguments)

    def _on_message(self, message: bytes) -> None:
        if message.startswith(_MESSAGE):
            self._coordinator.post(*self.heartbeat())

    def _answered(self, answer: Any) -> None:
        if answer is None:
            return
        # A string that is not UTF-8 must not keep the orders beside it from being read.
        text = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
        try:
            found = json.loads(text)
            serial, now = str(found["serial"]), int(found["time"])
            texts = [str(text) for text in found["orders"] or ()]
        except (ValueError, KeyError, TypeError):
            return  # damaged or forged; the next heartbeat reads again
        if serial == self._known:
            return
        self._known = serial
        self._deliver(texts, now)
        self._coordinator.post(*self.heartbeat())  # the operator's tool waits for the report
