"""The protocol of event sinks, as the dispatcher uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from resilient_imagen.telemetry.events import Event

__all__ = ["EventSink"]


class EventSink(Protocol):
    """A receiver of events.

    A sink with an attribute ``inline`` that is true is called in the caller's task, before the call
    continues, so it must be quick. Any other is called from one background thread, in order, with
    the caller's context variables: no call waits for it, and events beyond its queue are dropped.
    """

    def handle(self, event: Event) -> None:
        """Process ``event``; an exception is swallowed, and logged the first time."""
        ...
