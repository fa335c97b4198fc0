"""Activity: a client's counters per minute and its last fallbacks, collected from its events.

Memory is bounded: one row for each minute of the last hour, and the last fallbacks and changes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from resilient_imagen.telemetry import events
from resilient_imagen.telemetry.summaries import summary

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

__all__ = ["MINUTES", "Activity", "Minute"]

MINUTES: Final = 60
"""Number of minutes that are kept."""
_MAX_ENTRIES: Final = 20
"""Number of different fallbacks, and of different changes, that are kept."""
_MAX_TRACES: Final = 3
"""Number of trace ids, the latest ones, that are kept for equal fallbacks."""
_MINUTE: Final = 60.0


@dataclass(slots=True)
class Minute:
    """Counts of one minute."""

    calls: int = 0
    """Calls that ended."""
    images: int = 0
    """Images that were delivered."""
    fallback_images: int = 0
    """Images that another route than the first one delivered."""
    failed: int = 0
    """Calls that ended without an image, except those that the caller cancelled."""
    requests: int = 0
    """Requests to providers that ended."""
    request_failures: int = 0
    """Requests that failed."""
    wait_s: float = 0.0
    """Seconds that the calls waited: in queues, and between retries."""
    longest_wait_s: float = 0.0
    """The longest wait of a single call."""
    cost_usd: float = 0.0
    unpriced: int = 0
    """Images whose price is unknown."""


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
        self._minutes: deque[tuple[int, Minute]] = deque(maxlen=MINUTES)
        """Minutes in which something happened, by their number in loop time; the latest last."""
        self._fallbacks: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._changes: OrderedDict[Hashable, _Entry] = OrderedDict()

    def handle(self, event: events.Event) -> None:
        """Count one event."""
        match event:
            case events.AttemptEnded():
                self._count_request(event)
            case events.RequestEnded():
                self._count_call(event)
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
        known = dict(self._minutes.copy())
        current = int(events.now() // _MINUTE)
        return [known.get(each) or Minute() for each in range(current - MINUTES + 1, current + 1)]

    def fallbacks(self) -> list[dict[str, Any]]:
        """Return the fallbacks of the last hour, the latest first; equal ones are counted."""
        return list(_rows(self._fallbacks))

    def changes(self) -> list[dict[str, Any]]:
        """Return the last hour's changes of breakers, orders and warnings, the latest first."""
        return list(_rows(self._changes))

    def _minute(self, at: float) -> Minute:
        number = int(at // _MINUTE)
        if not self._minutes or self._minutes[-1][0] < number:
            self._minutes.append((number, Minute()))
        return self._minutes[-1][1]

    def _count_request(self, event: events.AttemptEnded) -> None:
        minute = self._minute(event.at)
        minute.requests += 1
        minute.request_failures += event.reason is not None or event.error_type is not None
        usage = event.usage
        if usage is not None and usage["cost_usd"] is not None:
            minute.cost_usd += usage["cost_usd"]
        elif event.reason is None and event.error_type is None:
            minute.unpriced += 1

    def _count_call(self, event: events.RequestEnded) -> None:
        minute = self._minute(event.at)
        minute.calls += 1
        wait = event.queue_s + event.backoff_s
        minute.wait_s += wait
        minute.longest_wait_s = max(minute.longest_wait_s, wait)
        if event.result is not None:
            images = 1 + len(event.result.more_images)
            minute.images += images
            if event.fallback_cause is not None:
                minute.fallback_images += images
        elif event.outcome != "cancelled":
            minute.failed += 1


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
    if entry is None or event.at - entry.event.at > MINUTES * _MINUTE:
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
        if age <= MINUTES * _MINUTE:
            yield {
                "age_s": round(age, 1),
                "sentence": summary(entry.event),
                "count": entry.count,
                "first_age_s": round(now - entry.first_at, 1),
                "traces": list(reversed(entry.traces)),
            }
