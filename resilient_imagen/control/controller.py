"""Controller: applies the orders of operators to one client, and reverts each at its end."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen import models
from resilient_imagen.circuitbreaker import Hold
from resilient_imagen.circuitbreaker.open_period import is_fatal
from resilient_imagen.control.order import CLOCKS_DIFFER, SETTING_ACTIONS, Order
from resilient_imagen.control.order_book import OrderBook
from resilient_imagen.control.overrides import fitted, overridden
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.telemetry import events
from resilient_imagen.telemetry.sanitize import safe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_imagen.pipeline.pipeline import Pipeline
    from resilient_imagen.pipeline.router import Router
    from resilient_imagen.settings import Settings
    from resilient_imagen.snapshots import ControlSnapshot
    from resilient_imagen.telemetry.dispatcher import SinkDispatcher

__all__ = ["ACTS_WITHIN", "Controller", "Refusal", "new_order"]

ACTS_WITHIN: Final = 60
"""Seconds after its issue within which an order that acts once is carried out."""
_MAX_REFUSALS: Final = 100
"""Number of refused orders that are remembered, so that each is reported once."""
_MAX_WARNINGS: Final = 100
_MAX_CAUSES: Final = 5
"""Number of refusals that are reported with their cause; each heartbeat transports these."""
_OWN_CAUSES: Final = frozenset({"no_route", "invalid"})
"""Codes of refusals whose causes depend on the client's routes and settings."""
_LONGEST: Final = 255
"""Characters of the orders on a span: some of Jaeger's stores do not search longer values."""


class Refusal(NamedTuple):
    """The cause for which an order is not obeyed, or not by every route."""

    code: str
    """off, unsigned, expired, replaced, full, no_route, invalid, account or forced."""
    message: str


class Controller:
    """Applies orders to the routes and the settings of one client.

    An order is valid until it ends by the event loop's clock, even if Redis or the control file
    becomes unavailable. All methods are called on the client's event loop, and none of them waits.

    Args:
        settings: The settings of the client, which apply without orders.
        router: Has the routes, breakers and queues.
        pipeline: Has the settings of hedging.
        dispatcher: Receives an event for each order that begins or ends.
        on_change: Called just before settings change.
    """

    def __init__(
        self,
        settings: Settings,
        router: Router,
        pipeline: Pipeline,
        dispatcher: SinkDispatcher,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._base = self._effective = settings
        self._router = router
        self._pipeline = pipeline
        self._dispatcher = dispatcher
        self._on_change = on_change
        self._book = OrderBook()
        self._refusals: OrderedDict[int, Refusal] = OrderedDict()
        """The causes for which orders are not obeyed, by serial; the latest last."""
        self._unfit: dict[int, Refusal] = {}
        """The causes for which orders in force to set a variable have no effect now."""
        self._warned: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.in_force: str | None = None
        """The orders that have an effect now, for spans; None if there are none."""

    @property
    def effective(self) -> Settings:
        """The settings with the changes of all orders in force."""
        return self._effective

    @property
    def enabled(self) -> bool:
        """Whether orders are obeyed at all."""
        return self._base.control == "on"

    def catch_up(self) -> None:
        """End the orders whose time is over. Quick, because every call does it."""
        if self.in_force is None:
            return
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self._book.due <= loop.time():
            self._end_orders()

    def obey(self, order: Order, left: float | None = None) -> None:
        """Obey an order of the client's own program, which needs no signature.

        Args:
            order: The order.
            left: Seconds until it ends; None for its ``ttl``.

        Raises:
            ConfigurationError: The order is refused, or a route does not obey it; the text says
                why.
        """
        asyncio.get_running_loop()  # fails before anything is changed
        refusal = self._receive(order, order.ttl if left is None else left, None)
        if refusal is not None:
            raise ConfigurationError(refusal.message)

    def receive(self, found: Iterable[tuple[Order, float]], namespace: str) -> None:
        """Obey valid orders from outside; warn once of each invalid one.

        Args:
            found: Orders with the seconds until each ends.
            namespace: Where they come from; part of their signature.
        """
        for order, left in sorted(found, key=lambda each: each[0].serial):
            self._receive(order, left, namespace)

    def receive_stored(self, texts: Iterable[str], now: int, namespace: str) -> None:
        """Obey orders that were stored as text, as ``receive``.

        Args:
            texts: The orders, in the format of ``Order.to_json``.
            now: The time of the clock that issued them, in microseconds since 1970.
            namespace: Where they come from.
        """
        found = []
        for text in texts:
            try:
                found.append(Order.parse(text))
            except ConfigurationError as error:
                self._warn_once(f"a stored order is not valid: {error}")
        self.receive(((order, (order.ends_at - now) / 1e6) for order in found), namespace)

    def report(self) -> dict[str, dict[int, str]]:
        """Return the fields of this client's report, ready for JSON.

        ``orders`` has the known serials with ``ok``, or with the code of the refusal. ``causes``
        has the causes of the latest refusals that depend on this client's routes and settings.
        """
        codes = {each.order.serial: "ok" for each in self._book}
        refused = {**self._refusals, **self._unfit}
        codes.update({serial: each.code for serial, each in refused.items()})
        own = sorted(serial for serial, each in refused.items() if each.code in _OWN_CAUSES)
        causes = {serial: safe(refused[serial].message) for serial in own[-_MAX_CAUSES:]}
        return {"orders": codes, "causes": causes} if causes else {"orders": codes}

    def snapshot(self) -> ControlSnapshot:
        """Return the orders that have an effect, as plain JSON."""
        now = events.now()
        return {
            "enabled": self.enabled,
            "signed": self._base.control_secret is not None,
            "orders": [
                {
                    "order": safe(order),
                    "action": order.action,
                    "target": order.target,
                    "value": order.value,
                    "by": safe(order.by),
                    "why": safe(order.why),
                    "left_s": round(max(0.0, until - now), 3),
                    "serial": order.serial,
                }
                for order, until in self._book
                if self._has_effect(order)
            ],
        }

    # Acceptance

    def _receive(self, order: Order, left: float, namespace: str | None) -> Refusal | None:
        refusal = self._check_signature(order, namespace)
        if refusal is None:
            if self._book.has(order):  # a route may not obey it
                return self._refusals.get(order.serial) or self._unfit.get(order.serial)
            refusal = self._outdated(order, left) or self._check_fit(order)
            if refusal is None:
                self._refusals.pop(order.serial, None)  # of an earlier delivery
                refusal = self._accept(order, min(left, order.ttl))
            elif refusal.code == "expired" and self._check_fit(order) is None:
                self._announce_ends(self._book.withdraw(order))
        if refusal is not None:
            self._refuse(order, refusal)
        return refusal

    def _check_signature(self, order: Order, namespace: str | None) -> Refusal | None:
        """Return why an order is not trusted, or None. Orders without a namespace are trusted."""
        if not self.enabled:
            return Refusal("off", "IMAGE_GEN_CONTROL is off, so that no order is obeyed")
        if namespace is None or self._base.control_secret is None:
            return None
        if order.is_signed(self._base.control_secret.get_secret_value(), namespace):
            return None
        return Refusal("unsigned", "its signature does not match IMAGE_GEN_CONTROL_SECRET")

    def _outdated(self, order: Order, left: float) -> Refusal | None:
        if left <= 0:
            return Refusal("expired", "its time is over")
        if left > order.ttl + CLOCKS_DIFFER:
            return Refusal("invalid", "its serial is a time in the future")
        if self._book.knows_later(order):
            return Refusal("replaced", "a later order is known")
        if self._book.is_full_for(order):
            return Refusal("full", "too many orders are in force")
        return None

    def _check_fit(self, order: Order) -> Refusal | None:
        """Return why an order cannot be applied to this client, or None."""
        if order.action not in SETTING_ACTIONS:
            if any(map(order.applies_to, self._router.names)) or self._is_known_route(order.target):
                return None
            known = ", ".join(self._router.names)
            return Refusal("no_route", f"no such route; routes are {known}")
        if order.action == "unset":
            return None  # afterwards, orders that are invalid without the ended one are left out
        values = {**self._values(), order.target: order.value or ""}
        try:
            self._router.steps_in_order(overridden(self._base, values))
        except ConfigurationError as error:
            return Refusal("invalid", str(error))
        return None

    def _is_known_route(self, target: str) -> bool:
        """Return whether a caller may name the route later: a known model of a used provider."""
        provider, _, model = target.partition(":")
        used = {name.partition(":")[0] for name in self._router.names}
        known = model in self._base.model_rows or models.find_model(model) is not None
        return provider in used and known

    def _accept(self, order: Order, left: float) -> Refusal | None:
        """Put an order into force. Return why a route does not obey it, or None."""
        now = events.now()
        self._book.add(order, now + left)
        self._apply()
        self._dispatcher.emit(
            events.OrderApplied(
                order=str(order), by=order.by, why=order.why, lasts_s=left if order.lasts else None
            )
        )
        if order.action not in {"close", "hold"}:
            return None
        return self._close(order, acts=order.action == "close" and order.ttl - left <= ACTS_WITHIN)

    def _close(self, order: Order, *, acts: bool) -> Refusal | None:
        """Close the circuits that an order names; return the cause if some stay open."""
        refusal = None
        for name, breaker in self._router.breakers.items():
            if not order.applies_to(name):
                continue
            if breaker.force_open:
                refusal = Refusal("forced", f"{name} is forced open by its process' own settings")
            elif is_fatal(breaker.snapshot()["why"]) and not order.even_account:
                refusal = Refusal(
                    "account",
                    f"{name} stays open after a failure of its account; add --even-account",
                )
            elif acts:
                breaker.close(even_if_fatal=True)
        return refusal

    def _refuse(self, order: Order, refusal: Refusal) -> None:
        if self._refusals.get(order.serial) == refusal:
            return
        if refusal.code not in {"off", "replaced", "expired"}:
            self._warn_of(order, refusal)
        if refusal.code == "unsigned" and any(
            each.order.serial == order.serial for each in self._book
        ):
            return  # forged with the serial of an order in force, which is reported
        self._refusals[order.serial] = refusal
        self._refusals.move_to_end(order.serial)
        if len(self._refusals) > _MAX_REFUSALS:
            self._refusals.popitem(last=False)

    def _warn_of(self, order: Order, refusal: Refusal) -> None:
        self._warn_once(f"order {safe(order)} by {safe(order.by)}: {refusal.message}")

    def _warn_once(self, message: str) -> None:
        """Warn of a refused order, unless there were too many of them: they may be forged."""
        if message not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(message)
            self._dispatcher.emit(events.OperatorWarning(code="control", message=message))

    # Effect

    def _values(self) -> dict[str, str]:
        """Return the ordered values of settings that have an effect, the earliest order first."""
        return {
            order.target: order.value or ""
            for order, _ in self._book
            if order.action == "set" and self._has_effect(order)
        }

    def _has_effect(self, order: Order) -> bool:
        return order.lasts and order.serial not in self._unfit

    def _apply(self) -> None:
        """Apply all orders in force to the client."""
        effective = self._settings_in_force()
        if effective is not self._effective:
            if self._on_change is not None:
                self._on_change()
            self._router.reconfigure(effective)
            self._pipeline.reconfigure(effective)
            self._effective = effective
        self._router.hold(self._hold_for)
        lasting = [safe(order) for order, _ in self._book if self._has_effect(order)]
        self.in_force = "; ".join(lasting)[:_LONGEST] or None
        self._set_timer()

    def _settings_in_force(self) -> Settings:
        """Return the settings with all ordered values.

        Two orders may be valid together only while a third one is in force. Otherwise the later one
        is left out until it is valid again.
        """
        before = self._unfit
        ordered = [order for order, _ in self._book if order.action == "set"]
        settings, problems = fitted(
            self._base, {order.target: order.value or "" for order in ordered}
        )
        self._unfit = {
            order.serial: Refusal("invalid", problems[order.target])
            for order in ordered
            if order.target in problems
        }
        for order in ordered:
            if order.serial in self._unfit and order.serial not in before:
                self._warn_of(order, self._unfit[order.serial])
        return settings

    def _hold_for(self, route: str) -> Hold | None:
        newest = self._book.newest_for(route)
        if newest is None or not newest.order.lasts:
            return None
        order = newest.order
        return Hold(order.action == "open", newest.until, even_if_fatal=order.even_account)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._loop = None, asyncio.get_running_loop()
        if self._book:
            self._timer = self._loop.call_at(self._book.due, self._end_orders)

    def _end_orders(self) -> None:
        self._announce_ends(self._book.end(events.now()), always=True)

    def _announce_ends(self, ended: list[Order], *, always: bool = False) -> None:
        """Revert orders that have ended, and report each."""
        if ended or always:
            self._apply()
        for order in ended:
            if order.lasts:
                self._dispatcher.emit(events.OrderEnded(order=str(order), by=order.by))

    def close(self) -> None:
        """Stop the timer, when the client is closed."""
        if self._timer is not None:
            self._timer.cancel()


def new_order(
    action: str,
    target: str,
    *,
    by: str,
    seconds: int = 1800,
    value: str | None = None,
    why: str = "",
    even_account: bool = False,
) -> Order:
    """Return an order that is issued now.

    Args:
        action: open, close, hold or reset for a route; set or unset for a setting.
        target: A route (``provider:model``, or a provider's name), or a variable.
        by: The name of the person or the program that gives it.
        seconds: How long it lasts, at most 24 hours.
        value: The new value of the variable.
        why: The reason.
        even_account: Whether close and hold apply even after a failure of the account.

    Raises:
        ConfigurationError: A value is not allowed.
    """
    return Order(
        action=action,
        target=target,
        value=value,
        even_account=even_account,
        ttl=seconds,
        by=by,
        why=why,
        serial=_next_serial(),
    )


def _next_serial() -> int:
    """Return the time in microseconds since 1970, but more than the last serial."""
    _last[0] = max(_last[0] + 1, time.time_ns() // 1000)
    return _last[0]


_last: Final = [0]
