"""Activity: a client's counters per minute and its last fallbacks, collected from its events.

Memory is bounded: one row for each minute of the last hour, and the last fallbacks and changes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from resilient_imagen.telemetry import events
from resilient_imagen.telemetry.minutes import MinuteCounters
from resilient_imagen.telemetry.summaries import summary

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from resilient_imagen.telemetry.minutes import Minute

__all__ = ["Activity", "as_rows"]

_MAX_ENTRIES: Final = 20
"""Number of different fallbacks, and of different changes, that are kept."""
_MAX_TRACES: Final = 3
"""Number of trace ids, the latest ones, that are kept for equal fallbacks."""
_HOUR: Final = 3600.0


@dataclass(slots=True)
class _Entry:
    """Equal events: the latest one and their number."""

    event: events.Event
    first_at: float
    count: int = 0
    traces: deque[str] = field(default_factory=lambda: deque(maxlen=_MAX_TRACES))


class Activity:
    """An event sink that counts. It is called inline and does constant work for each event."""

    inline = True

    def __init__(self) -> None:
        self._counters = MinuteCounters()
        self._fallbacks: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._changes: OrderedDict[Hashable, _Entry] = OrderedDict()

    def handle(self, event: events.Event) -> None:
        """Count one event."""
        self._counters.handle(event)
        match event:
            case events.RouteFallback():
                fallback = (event.from_route, event.to_route, event.cause, event.hedged)
                _remember(self._fallbacks, fallback, event, traced=True)
            case events.BreakerChanged() if not event.transition.shadow:
                to = event.transition
                change = (to.name, to.from_state, to.to_state, to.cause)
                _remember(self._changes, change, event)
            case events.OrderApplied() | events.OrderEnded():
                _remember(self._changes, (type(event), event.order, event.by), event)
            case events.OperatorWarning():
                _remember(self._changes, (event.code, event.message), event)

    def minutes(self) -> list[Minute]:
        """Return the last hour, the current minute last; minutes without calls are zero."""
        return self._counters.minutes()

    def fallbacks(self) -> list[dict[str, Any]]:
        """Return the fallbacks of the last hour, the latest first; equal ones are counted."""
        return list(_rows(self._fallbacks))

    def changes(self) -> list[dict[str, Any]]:
        """Return the last hour's changes of breakers, orders and warnings, the latest first."""
        return list(_rows(self._changes))


def as_rows(minutes: list[Minute]) -> list[dict[str, Any]]:
    """Return minutes as plain JSON."""
    return [{key: round(value, 4) for key, value in asdict(minute).items()} for minute in minutes]


def _remember(
    entries: OrderedDict[Hashable, _Entry],
    key: Hashable,
    event: events.Event,
    *,
    traced: bool = False,
) -> None:
    entry = entries.get(key)
    if entry is None or event.at - entry.event.at > _HOUR:
        entry = entries[key] = _Entry(event, event.at)
    entries.move_to_end(key)
    if len(entries) > _MAX_ENTRIES:
        entries.popitem(last=False)
    entry.event = event
    entry.count += 1
    if traced:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            entry.traces.append(f"{span.trace_id:032x}")


def _rows(entries: OrderedDict[Hashable, _Entry]) -> Iterator[dict[str, Any]]:
    now = events.now()
    for entry in reversed(entries.copy().values()):
        age = now - entry.event.at
        if age <= _HOUR:
            yield {
                "age_s": round(age, 1),
                "sentence": summary(entry.event),
                "count": entry.count,
                "first_age_s": round(now - entry.first_at, 1),
                "traces": list(reversed(entry.traces)),
            }
