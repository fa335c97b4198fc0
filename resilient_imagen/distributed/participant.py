"""Participant protocol: the methods that the coordinator calls on breakers and limiters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_imagen.distributed.breaker_record import BreakerRecord
    from resilient_imagen.distributed.scripts import ScriptCall

__all__ = ["Answer", "Participant", "PendingCommand"]

Answer: TypeAlias = "Callable[[Any | None], None]"


class PendingCommand(NamedTuple):
    """A command to be sent, and the callback for its answer; None means an unknown result."""

    call: ScriptCall
    answer: Answer


class Participant(Protocol):
    """An object with shared state. All methods are called on the loop and must not block."""

    resource: str
    """The name of its shared state; see `RedisCoordinator.resource_name`."""

    @property
    def settings(self) -> str:
        """The settings that should be the same in every process, as ``name=value`` words."""
        ...

    def heartbeat(self) -> PendingCommand:
        """Return the command to send on connecting and then periodically."""
        ...

    def on_update(self, record: BreakerRecord) -> None:
        """Apply a changed record of its resource."""
        ...

    def on_connected(self) -> None:
        """Begin to use the shared state; Redis is connected and the heartbeat was answered."""
        ...

    def on_disconnected(self) -> None:
        """Continue with local state only; Redis is disconnected."""
        ...

    def release_commands(self) -> Iterable[ScriptCall]:
        """Return the commands to send before the process disconnects."""
        ...
