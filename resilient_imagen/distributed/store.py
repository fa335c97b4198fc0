"""What is expected of the store that processes share, and how it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.distributed.scripts import ScriptCall

__all__ = [
    "JOIN_WITHIN",
    "ConnectionFactory",
    "MisconfiguredError",
    "StoreConnection",
    "StoreUnavailableError",
]

JOIN_WITHIN: Final = 1.0
"""Seconds in which connecting, signing in and the first news have to be done."""


class StoreUnavailableError(Exception):
    """Redis is away: gone, silent, full, or not to be written to. The text is short, for people."""


class MisconfiguredError(StoreUnavailableError):
    """Redis or the URL itself says that it cannot be right; waiting does not help."""


class StoreConnection(Protocol):
    """What the coordinator needs of a connection to the store."""

    async def run(self, steps: Sequence[ScriptCall]) -> list[Any]:
        """Take the steps, in this order, in one round trip, and return their answers.

        Raises:
            StoreUnavailableError: One of them was not taken, or it is not known.
        """
        ...

    async def news(self) -> bytes | None:
        """Return the next record told on the channel; None for a sign of life.

        Raises:
            StoreUnavailableError: There will be no more.
        """
        ...

    async def ping(self) -> None:
        """Ask the channel's connection for a sign of life, which `news` receives.

        Raises:
            StoreUnavailableError: It cannot be asked.
        """
        ...

    async def aclose(self) -> None:
        """Drop both connections; quick, and never raises."""
        ...


class ConnectionFactory(Protocol):
    """Where connections are had."""

    async def prepare(self) -> None:
        """Do what needs no Redis, once.

        Raises:
            MisconfiguredError: The URL cannot be right.
        """
        ...

    async def open(self) -> StoreConnection:
        """Connect, subscribe and load the scripts.

        Raises:
            StoreUnavailableError: Redis is away.
            MisconfiguredError: It is there, and refuses us.
        """
        ...
