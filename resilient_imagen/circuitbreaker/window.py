"""When the breaker opens: the window of recent outcomes and the trip rules."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from resilient_imagen.circuitbreaker.open_period import valid_hint
from resilient_imagen.reasons import BreakerOutcome

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker.config import BreakerConfig

__all__ = ["BUCKETS", "TripRule", "Window", "trips_at_once"]

BUCKETS: Final = 60
"""Buckets of a window. The width of a bucket is the precision with which outcomes expire."""


class Window:
    """A sliding window of outcomes in a ring of buckets: constant time and memory.

    The current bucket and the 59 before it are counted, so an outcome is never counted for longer
    than `seconds`, and may expire up to one bucket's width earlier.
    """

    __slots__ = ("_calls", "_failures", "_newest", "_width", "calls", "failures", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds: float = seconds
        self._width = seconds / BUCKETS
        self.clear()

    def clear(self) -> None:
        """Remove all outcomes."""
        self.calls: int = 0
        self.failures: int = 0
        self._calls = [0] * BUCKETS
        self._failures = [0] * BUCKETS
        self._newest = -(2**62)

    def add(self, now: float, *, failed: bool) -> None:
        """Count one outcome."""
        self.roll(now)
        self._put(self._newest, 1, int(failed))

    def roll(self, now: float) -> None:
        """Remove expired outcomes."""
        newest = math.floor(now / self._width)
        passed = newest - self._newest
        if passed <= 0:
            return
        if passed >= BUCKETS:
            self.clear()
        else:
            for index in range(self._newest + 1, newest + 1):
                slot = index % BUCKETS
                self.calls -= self._calls[slot]
                self.failures -= self._failures[slot]
                self._calls[slot] = self._failures[slot] = 0
        self._newest = newest

    @property
    def failure_rate(self) -> float:
        """Failed share of the calls, 0 to 1; 0 if there are no calls."""
        return self.failures / self.calls if self.calls else 0.0

    def resized(self, seconds: float, now: float) -> Window:
        """Return a window of another length with the same outcomes.

        Each outcome is taken to have occurred in the middle of its bucket.
        """
        self.roll(now)
        other = Window(seconds)
        other.roll(now)
        for index in range(self._newest - BUCKETS + 1, self._newest + 1):
            slot = index % BUCKETS
            middle = min((index + 0.5) * self._width, now)
            target = math.floor(middle / other._width)
            if other._newest - target < BUCKETS:
                other._put(target, self._calls[slot], self._failures[slot])
        return other

    def _put(self, index: int, calls: int, failures: int) -> None:
        slot = index % BUCKETS
        self._calls[slot] += calls
        self._failures[slot] += failures
        self.calls += calls
        self.failures += failures


class TripRule:
    """Counts outcomes and decides whether the last failure trips the breaker."""

    __slots__ = ("config", "consecutive", "tripped", "window")

    def __init__(self, config: BreakerConfig) -> None:
        self.config: BreakerConfig = config
        self.consecutive: int = 0
        self.tripped: bool = False
        """Whether the last outcome was a failure that met a trip rule."""
        self.window: Window = Window(config.window)

    def reconfigure(self, config: BreakerConfig, now: float) -> None:
        """Apply other settings and keep the counts. The next failure is judged by them."""
        if config.window != self.window.seconds:
            self.window = self.window.resized(config.window, now)
        self.config = config

    def success(self, now: float) -> None:
        """Count a success."""
        self.window.add(now, failed=False)
        self.consecutive = 0
        self.tripped = False

    def failure(self, now: float) -> None:
        """Count a failure; both trip rules apply."""
        self.window.add(now, failed=True)
        self.consecutive += 1
        self.tripped = self.consecutive_exceeded or self.failure_rate_exceeded

    def throttled(self) -> None:
        """Count a rate limit error as a consecutive failure, outside the failure rate."""
        self.consecutive += 1
        self.tripped = self.consecutive_exceeded

    def clear(self) -> None:
        """Reset all counts, when the breaker closes."""
        self.consecutive = 0
        self.tripped = False
        self.window.clear()

    @property
    def consecutive_exceeded(self) -> bool:
        """Whether there are `fail_max` consecutive failures."""
        return self.consecutive >= self.config.fail_max

    @property
    def failure_rate_exceeded(self) -> bool:
        """Whether enough calls of the window failed."""
        window, config = self.window, self.config
        return window.calls >= config.min_calls and window.failure_rate >= config.failure_rate


def trips_at_once(verdict: BreakerOutcome, retry_after: float | None) -> bool:
    """Return whether one outcome opens the breaker: a fatal failure, or a server's hint to wait."""
    hinted = verdict is BreakerOutcome.THROTTLED and valid_hint(retry_after) is not None
    return hinted or verdict is BreakerOutcome.TRIP
