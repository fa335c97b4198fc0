"""Orders on the command line: parse options, store the order, and print the answer."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias

import typer

from resilient_imagen.cli.command_errors import FAILED, CommandError, system_words, warn
from resilient_imagen.cli.terminal import echo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilient_imagen import Settings
    from resilient_imagen.control import Order
    from resilient_imagen.control.fleet import FleetOrders
    from resilient_imagen.distributed.order_board import WorkerReport

__all__ = [
    "ControlFilePath",
    "FleetUrl",
    "Lasts",
    "Why",
    "fleet_orders",
    "open_place",
    "send",
    "settings_with",
    "span",
    "warn_of_distrusted",
]

_WAITS: Final = 6.0
"""Seconds to wait for processes that look at a control file once a second."""
_PAUSE: Final = 0.05

Lasts: TypeAlias = Annotated[
    str, typer.Option("--for", help="How long it holds, such as 20s, 30m or 2h; at most 24h.")
]
Why: TypeAlias = Annotated[
    str, typer.Option(help="The reason, for the log and for other operators.")
]
FleetUrl: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        help="The fleet's Redis; IMAGE_GEN_REDIS_URL if not given.",
        show_default=False,
    ),
]
ControlFilePath: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--control-file",
        help="A control file instead; IMAGE_GEN_CONTROL_FILE if not given.",
        show_default=False,
    ),
]


class Given(NamedTuple):
    """An issued order and the answer of the processes."""

    order: Order
    answer: str
    """A sentence about the processes that obey."""
    is_obeyed: bool
    """Whether all processes that answered obey; of a fleet, at least one must have answered."""


class _Fleet(NamedTuple):
    """The processes that share one Redis."""

    fleet: FleetOrders

    @property
    def shown(self) -> str:
        address = self.fleet.address
        return f"Redis at {address.shown}, keys {address.namespace}:*"

    def read(self) -> list[tuple[Order, float]]:
        """Return the orders in force, with the seconds that are left; warn of distrusted ones."""
        found = asyncio.run(self.fleet.read_all())
        warn_of_distrusted(found.distrusted)
        return [(each.order, each.left_s) for each in found.orders]

    def put(self, draft: Order) -> Given:
        """Issue an order."""
        from resilient_imagen import ConfigurationError
        from resilient_imagen.distributed.order_board import Stage

        stages = [Stage.NOT_GIVEN]
        try:
            given = asyncio.run(self.fleet.give(draft, stages.append))
        except ConfigurationError as error:
            if stages[-1] is Stage.NOT_GIVEN:
                raise
            return Given(draft, f"{stages[-1].value}: {error}", is_obeyed=False)
        except KeyboardInterrupt:
            if stages[-1] is not Stage.NOT_GIVEN:
                warn(f"{draft}: {stages[-1].value}")
            raise
        return Given(given.order, given.answer, given.is_obeyed)


class _File(NamedTuple):
    """A control file, for the processes of this machine; the methods are those of a fleet."""

    path: Path
    secret: str | None

    @property
    def shown(self) -> str:
        return f"control file {self.path}"

    def read(self) -> list[tuple[Order, float]]:
        from resilient_imagen.control.control_file import NAMESPACE, read_orders
        from resilient_imagen.control.issue import distrusted, in_force, trusted

        found = read_orders(self.path)
        if found.problems:
            raise CommandError(found.complaint(self.path))
        orders, now = found.orders, time.time_ns() // 1000
        warn_of_distrusted(distrusted(orders, self.secret, NAMESPACE, now))
        return in_force(trusted(orders, self.secret, NAMESPACE), now)

    def put(self, draft: Order) -> Given:
        from resilient_imagen.control.control_file import NAMESPACE, write_order
        from resilient_imagen.control.fleet import SharedOrder
        from resilient_imagen.control.issue import issued

        def issue(known: Iterable[Order], now: int) -> Order:
            order = issued(draft, known, now)
            return order if self.secret is None else order.signed(self.secret, NAMESPACE)

        order = write_order(self.path, issue, self.secret)
        written = f"written to {self.path}"
        try:
            given = SharedOrder(order, order.ttl, self._answers(order.serial))
        except KeyboardInterrupt:
            warn(f"{order}: {written}, but it is not known which workers obey")
            raise
        except OSError as error:
            cause = f"its answers cannot be read: {system_words(error)}"
            return Given(order, f"{written}, but {cause}", is_obeyed=False)
        if not given.reports:
            # It may be started later, or not be permitted to write beside the file.
            answer = f"{written}; no process has answered: one that reads it obeys within a second"
            return Given(order, answer, is_obeyed=True)
        return Given(order, f"{written}; {given.answer}", given.is_obeyed)

    def _answers(self, serial: int) -> list[WorkerReport]:
        """Return the answers of the processes, once each has read the order."""
        from resilient_imagen.control.file_answers import read_answers

        give_up = time.monotonic() + _WAITS
        while True:
            found = read_answers(self.path)
            if all(each.known >= serial for each in found) or time.monotonic() > give_up:
                return found
            time.sleep(_PAUSE)


def settings_with(redis_url: str | None) -> Settings:
    """Return the settings of the environment, with the option --redis-url in place of its own.

    Raises:
        ConfigurationError: A variable holds what is not allowed.
    """
    from resilient_imagen import Settings

    return Settings(redis_url=redis_url) if redis_url else Settings()


def fleet_orders(settings: Settings) -> FleetOrders:
    """Return the orders of the fleet at the settings' Redis.

    Raises:
        CommandError: They name no Redis.
    """
    from resilient_imagen.control.fleet import FleetOrders
    from resilient_imagen.distributed import Address

    if settings.redis_url is None:
        raise CommandError("nothing is shared: set IMAGE_GEN_REDIS_URL, or give --redis-url")
    return FleetOrders(Address.parse(settings.redis_url.get_secret_value()), _secret(settings))


def open_place(
    redis_url: str | None, control_file: Path | None
) -> tuple[_Fleet | _File | None, Settings]:
    """Return where orders go, by the options or else by the environment, and the settings.

    Raises:
        CommandError: Two places are named.
        ConfigurationError: A variable holds what is not allowed.
    """
    if redis_url and control_file:
        raise CommandError("give --redis-url for a fleet or --control-file for one machine")
    settings = settings_with(redis_url)
    if settings.redis_url is not None and control_file is None:
        return _Fleet(fleet_orders(settings)), settings
    path = control_file or settings.control_file
    return None if path is None else _File(Path(path), _secret(settings)), settings


def send(
    redis_url: str | None, control_file: Path | None, lasts: str, why: str, **fields: Any
) -> None:
    """Issue an order, and print what it is and how it is obeyed.

    The first arguments are options of the command, and ``fields`` has the other fields of Order.

    Raises:
        CommandError: No place is named, or two are, or --for is not a time.
        ConfigurationError: The order or a variable holds what is not allowed.
        Exit: Not all processes obey.
    """
    from resilient_imagen import ConfigurationError
    from resilient_imagen.control import Order, parse_duration

    try:
        ttl = parse_duration(lasts)
    except ConfigurationError as error:
        raise CommandError(f"--for {error}") from None
    draft = Order(ttl=ttl, by=_author(), why=why, serial=1, **fields)
    place, _ = open_place(redis_url, control_file)
    if place is None:
        raise CommandError(
            "no process can be reached: set IMAGE_GEN_REDIS_URL or IMAGE_GEN_CONTROL_FILE, or give "
            "--redis-url or --control-file"
        )
    order, answer, is_obeyed = place.put(draft)
    if not is_obeyed:
        warn(f"{order}: {answer}")
        raise typer.Exit(FAILED)
    until = time.strftime("%H:%M:%S", time.localtime(time.time() + order.ttl))
    echo(f"{order}{f' until {until}' if order.lasts else ''}: {answer}")


def warn_of_distrusted(count: int) -> None:
    """Print the number of orders that are hidden because of their signatures, if there are any."""
    if count:
        orders = "1 order is" if count == 1 else f"{count} orders are"
        warn(f"{orders} not shown: not signed with the IMAGE_GEN_CONTROL_SECRET of this shell")


def span(seconds: float) -> str:
    """Return a time in words."""
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 120 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.0f} h"


def _author() -> str:
    """Return the user and the machine, as the name of an order's author."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"[:80]


def _secret(settings: Settings) -> str | None:
    secret = settings.control_secret
    return None if secret is None else secret.get_secret_value()
