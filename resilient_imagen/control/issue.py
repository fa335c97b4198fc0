"""Issue orders: serials and lifetimes that are consistent with the known orders."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from resilient_imagen.control.order import CLOCKS_DIFFER, LONGEST, SETTING_ACTIONS, Order
from resilient_imagen.control.order_book import OrderBook

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "book_of",
    "distrusted",
    "in_force",
    "issued",
    "seconds_left",
    "signer_of",
    "trusted",
]

SHORTEST: Final = 60
"""Seconds for which an order that acts once is kept, so that every process receives it."""
_MICRO: Final = 1_000_000


def issued(draft: Order, known: Iterable[Order], now: int) -> Order:
    """Return an order that replaces the known ones, issued at ``now`` (microseconds since 1970).

    An order that ends others lasts as long as they would have: a process that starts later, or was
    away, must not obey them.
    """
    known = [
        each for each in known if each.serial <= now + CLOCKS_DIFFER * _MICRO
    ]  # others are not obeyed
    serial = max([now, *(each.serial + 1 for each in known)])
    order = replace(draft, serial=serial)
    if order.lasts:
        return order
    left = [each.ends_at - serial for each in known if _concern_each_other(order, each)]
    longest = -(-max([0, *left]) // _MICRO)  # rounded up
    return replace(order, ttl=min(max(SHORTEST, longest), LONGEST))


def signer_of(secret: str | None) -> str:
    """Return an identifier of a secret, so that orders of each signer can be stored apart.

    Without a secret it is empty. It reveals no more than a signature does.
    """
    if secret is None:
        return ""
    return hmac.new(secret.encode(), b"signer", hashlib.sha256).hexdigest()[:16]


def trusted(orders: Iterable[Order], secret: str | None, namespace: str) -> list[Order]:
    """Return the orders that processes obey: with a secret, the signed ones."""
    return [order for order in orders if secret is None or order.is_signed(secret, namespace)]


def distrusted(orders: Iterable[Order], secret: str | None, namespace: str, now: int) -> int:
    """Return the number of unexpired orders that processes with the secret do not obey."""
    stored = [order for order in orders if order.ends_at > now]
    return len(stored) - len(trusted(stored, secret, namespace))


def book_of(orders: Iterable[Order], now: int) -> OrderBook:
    """Return the orders that a process has accepted; ends are in seconds since 1970."""
    book = OrderBook()
    for order in sorted(orders, key=lambda each: each.serial):
        if order.ends_at > now:
            book.add(order, order.ends_at / _MICRO)
    return book


def in_force(orders: Iterable[Order], now: int) -> list[tuple[Order, float]]:
    """Return the orders that a process obeys, with the seconds that are left."""
    return [
        (each.order, seconds_left(each.order, now))
        for each in book_of(orders, now)
        if each.order.lasts
    ]


def seconds_left(order: Order, now: int) -> float:
    """Return the seconds until an order ends."""
    return min((order.ends_at - now) / _MICRO, float(order.ttl))


def _concern_each_other(order: Order, other: Order) -> bool:
    if order.action in SETTING_ACTIONS or other.action in SETTING_ACTIONS:
        return order.topic == other.topic
    return order.applies_to(other.target) or other.applies_to(order.target)
