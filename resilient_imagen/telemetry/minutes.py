"""Minutes: counters of calls, requests, waits and costs for each minute of the last hour."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from resilient_imagen.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Mapping

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


class MinuteCounters:
    """An event sink that counts. It is called inline and does constant work for each event."""

    inline = True

    def __init__(self) -> None:
        self._minutes: deque[tuple[int, Minute]] = deque(maxlen=MINUTES)
        """Minutes in which something happened, by their number in loop time; the latest last."""

    def handle(self, event: events.Event) -> None:
        """Count one event."""
        match event:
            case events.AttemptEnded():
                self._count_request(event)
            case events.RequestEnded():
                self._count_call(event)

    def minutes(self) -> list[Minute]:
        """Return the last hour, the current minute last; minutes without calls are zero."""
        known = dict(self._minutes.copy())
        current = int(events.now() // _MINUTE)
        return [known.get(each) or Minute() for each in range(current - MINUTES + 1, current + 1)]

    def take(self) -> list[tuple[float, Mapping[str, float]]]:
        """Return the counters since the last time that this was called, except those that are 0.

        Returns:
            For each minute the mean age of its events in seconds, and the counters by name.
        """
        now = events.now()
        taken = [
            (now - (number * _MINUTE + min(now, (number + 1) * _MINUTE)) / 2, asdict(minute))
            for number, minute in self._minutes
        ]
        self._minutes.clear()
        return [
            (max(0.0, age), {name: value for name, value in counts.items() if value})
            for age, counts in taken
        ]

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
