"""The protocol of event sinks, as the dispatcher uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.telemetry.events import Event

__all__ = ["EventSink", "SelectiveSink"]


class EventSink(Protocol):
    """A receiver of events.

    A sink with an attribute ``inline`` that is true is called in the caller's task, before the call
    continues, so it must be quick. Any other is called from one background thread, in order, with
    the caller's context variables: no call waits for it, and events beyond its queue are dropped.
    """

    def handle(self, event: Event) -> None:
        """Process ``event``; an exception is swallowed, and logged the first time."""
        ...


class SelectiveSink:
    """Base of sinks that handle some types of events, in the caller's task.

    Every call has four events or more; the dispatcher calls only the function for the type.
    """

    inline = True

    def handler_of(self, kind: type[Event]) -> Callable[[Any], None] | None:
        """Return the function that handles events of a type; None if they are ignored.

        It is asked once for each type, so its answer must not change.
        """
        raise NotImplementedError

    def handle(self, event: Event) -> None:
        """Process ``event``, if its type is handled."""
        handler = self.handler_of(type(event))
        if handler is not None:
            handler(event)
