"""The protocols of event sinks, as the dispatcher uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from resilient_imagen.telemetry.events import Event

__all__ = ["ChoosySink", "EventSink"]


class EventSink(Protocol):
    """A receiver of events.

    A sink with an attribute ``inline`` that is true is called in the caller's task, before the
    call goes on, so it must be quick. Any other is called from one background thread, in order,
    with the caller's context variables: however slow it is, no call waits for it, and what it
    cannot keep up with is dropped.
    """

    def handle(self, event: Event) -> None:
        """Take note of ``event``; what it raises is swallowed, and logged the first time."""
        ...


@runtime_checkable
class ChoosySink(EventSink, Protocol):
    """A sink that may have nobody to pass on to: then events need not be put together for it."""

    def told_from(self) -> float:
        """Return the level, as logging counts, from which on it makes something of a call's events.

        Asked once for each call, when it begins: 0 stands for all of them, infinity for none.
        """
        ...
