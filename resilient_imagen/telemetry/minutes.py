"""Minutes: counters of calls, requests, waits and costs for each minute of the last hour."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from resilient_imagen.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MINUTES", "Minute", "MinuteCounters"]

MINUTES: Final = 60
"""Number of minutes that are kept."""
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
class _Row:
    """The counts of one minute."""

    number: int
    """The minute in loop time."""
    first_at: float
    """When something was first counted."""
    last_at: float
    counts: Minute

    def plus(self, other: _Row) -> _Row:
        """Return the counts of both, which are of the same minute."""
        ones, others = asdict(self.counts), asdict(other.counts)
        counts = {
            name: max(one, others[name]) if name.startswith("longest_") else one + others[name]
            for name, one in ones.items()
        }
        first_at, last_at = min(self.first_at, other.first_at), max(self.last_at, other.last_at)
        return _Row(self.number, first_at, last_at, Minute(**counts))


class MinuteCounters:
    """An event sink that counts. It is called inline and does constant work for each event."""

    inline = True

    def __init__(self) -> None:
        self._rows: deque[_Row] = deque(maxlen=MINUTES)
        """Minutes in which something happened, the latest last."""

    def handle(self, event: events.Event) -> None:
        """Count one event."""
        match event:
            case events.AttemptEnded():
                self._count_request(event)
            case events.RequestEnded():
                self._count_call(event)

    def minutes(self) -> list[Minute]:
        """Return the last hour, the current minute last; minutes without calls are zero."""
        known = {row.number: row.counts for row in self._rows.copy()}
        current = int(events.now() // _MINUTE)
        return [known.get(each) or Minute() for each in range(current - MINUTES + 1, current + 1)]

    def take(self) -> tuple[list[tuple[float, Mapping[str, float]]], Callable[[], None]]:
        """Return the counters since the last time that this was called, except those that are 0.

        Returns:
            For each minute the mean age of its events in seconds, and the counters by name; and a
            function that adds them again, to be called if they could not be sent.
        """
        now = events.now()
        taken = list(self._rows)
        self._rows.clear()

        def put_back() -> None:
            rows = {row.number: row for row in taken}
            for row in self._rows:
                before = rows.get(row.number)
                rows[row.number] = row if before is None else before.plus(row)
            self._rows = deque((rows[number] for number in sorted(rows)), maxlen=MINUTES)

        parts: list[tuple[float, Mapping[str, float]]] = [
            (
                max(0.0, now - (row.first_at + row.last_at) / 2),
                {name: value for name, value in asdict(row.counts).items() if value},
            )
            for row in taken
        ]
        return parts, put_back

    def _minute(self, at: float) -> Minute:
        number = int(at // _MINUTE)
        if not self._rows or self._rows[-1].number < number:
            self._rows.append(_Row(number, at, at, Minute()))
        row = self._rows[-1]
        row.last_at = max(row.last_at, at)
        return row.counts

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
