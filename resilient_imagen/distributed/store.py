"""Shared store: the protocols of its connections, and its exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.distributed.scripts import ScriptCall

__all__ = ["ConnectionFactory", "MisconfiguredError", "StoreConnection", "StoreUnavailableError"]


class StoreUnavailableError(Exception):
    """Redis is unavailable: not reachable, silent, full or read-only. The text is for logs."""


class MisconfiguredError(StoreUnavailableError):
    """The URL or Redis is misconfigured, so that retrying does not help."""


class StoreConnection(Protocol):
    """A connection to the store, as the coordinator uses it."""

    async def run(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Run the commands in this order, in one round trip, and return their answers.

        Raises:
            StoreUnavailableError: A command was not run, or its result is unknown.
        """
        ...

    async def next_message(self) -> bytes | None:
        """Return the next message of the channel; None for the answer to a ping.

        Raises:
            StoreUnavailableError: The connection is lost.
        """
        ...

    async def ping(self) -> None:
        """Send a ping on the channel's connection; `next_message` receives the answer.

        Raises:
            StoreUnavailableError: The connection is lost.
        """
        ...

    async def aclose(self) -> None:
        """Close the connection quickly; never raises."""
        ...


class ConnectionFactory(Protocol):
    """Opens connections to the store."""

    async def prepare(self) -> None:
        """Do the preparations that need no Redis, once.

        Raises:
            MisconfiguredError: The URL is not valid.
        """
        ...

    async def open(self) -> StoreConnection:
        """Connect, subscribe and load the scripts.

        Raises:
            StoreUnavailableError: Redis is unavailable.
            MisconfiguredError: Redis rejects the connection, so that retrying does not help.
        """
        ...
