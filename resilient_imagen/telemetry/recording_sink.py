"""A sink that records events: for tests, simulations and recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from resilient_imagen.telemetry.events import AttemptEnded, RequestEnded

if TYPE_CHECKING:
    from resilient_imagen.telemetry.events import Event

__all__ = ["RecordingSink"]

_E = TypeVar("_E", bound="Event")


class RecordingSink:
    """Keeps every event, in order, until ``clear()``.

    ::

        sink = RecordingSink()
        async with ImageClient(sinks=[sink]) as client:
            await client.generate("a lighthouse")
        assert sink.last(RequestEnded).outcome == "success"

    Attributes:
        events: All events so far, the oldest first.
    """

    inline = True

    def __init__(self) -> None:
        self.events: list[Event] = []

    def handle(self, event: Event) -> None:
        """Record it."""
        self.events.append(event)

    def of(self, kind: type[_E]) -> list[_E]:
        """Return every event of this type."""
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type[_E]) -> _E:
        """Return the latest event of this type.

        Raises:
            LookupError: There was none.
        """
        for event in reversed(self.events):
            if isinstance(event, kind):
                return event
        raise LookupError(f"no {kind.__name__} was emitted")

    @property
    def kinds(self) -> list[str]:
        """The type name of each event, in order."""
        return [type(event).__name__ for event in self.events]

    @property
    def attempts(self) -> list[AttemptEnded]:
        """Every request that was sent and ended."""
        return self.of(AttemptEnded)

    @property
    def calls(self) -> list[RequestEnded]:
        """Every call that ended."""
        return self.of(RequestEnded)

    def clear(self) -> None:
        """Delete all events."""
        self.events.clear()
