"""Whoever shares something: what the fleet's background task asks of breakers and limiters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_imagen.distributed.breaker_record import BreakerRecord
    from resilient_imagen.distributed.scripts import ScriptCall

__all__ = ["Answer", "Participant", "PendingCommand"]

Answer: TypeAlias = "Callable[[Any | None], None]"


class PendingCommand(NamedTuple):
    """A step to be taken, and who wants to know. None: it may or may not have been taken."""

    call: ScriptCall
    answer: Answer


class Participant(Protocol):
    """Whoever shares something. All methods are called on the loop and must not wait."""

    resource: str
    """What records about it are called; see `RedisCoordinator.topic`."""

    def heartbeat(self) -> PendingCommand:
        """What to say on joining and once in a while."""
        ...

    def on_update(self, record: BreakerRecord) -> None:
        """The record about its topic has changed."""
        ...

    def on_connected(self) -> None:
        """The fleet is in reach, and the check-in was answered."""
        ...

    def on_disconnected(self) -> None:
        """The fleet is out of reach: go on alone."""
        ...

    def release_commands(self) -> Iterable[ScriptCall]:
        """What to say before the process goes."""
        ...
