"""When to open, and for how long: arithmetic without a clock, a loop or a state machine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from resilient_imagen.reasons import POLICIES, BreakerOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.circuitbreaker.config import BreakerConfig

__all__ = [
    "BUCKETS",
    "MAX_HINT",
    "TripRule",
    "Window",
    "longest_pause",
    "open_duration",
    "trip_duration",
    "valid_hint",
]

BUCKETS: Final = 60
"""Buckets of a window; one bucket's width is the precision with which an outcome grows old."""

MAX_HINT: Final = 86_400.0
"""Seconds: the longest hint of a server that is taken at its word."""

_JITTER: Final = 0.1
_ROUNDING: Final = 0.001
"""Seconds by which a period may grow when another process tells it."""
_AT_ONCE: Final = frozenset(
    str(reason) for reason, policy in POLICIES.items() if policy.verdict is BreakerOutcome.TRIP
)
_MAX_DOUBLINGS: Final = 60  # far beyond any maximum, and far below what a float can hold


class Window:
    """Outcomes of the last so many seconds, in a ring of buckets: constant time and memory.

    The bucket in use and the 59 before it are counted, so an outcome is never counted beyond
    `seconds`, and may leave the count up to one bucket's width earlier.
    """

    __slots__ = ("_calls", "_failures", "_newest", "_width", "calls", "failures", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._width = seconds / BUCKETS
        self.clear()

    def clear(self) -> None:
        """Forget every outcome."""
        self.calls = 0
        self.failures = 0
        self._calls = [0] * BUCKETS
        self._failures = [0] * BUCKETS
        self._newest = -(2**62)

    def add(self, now: float, *, failed: bool) -> None:
        """Count one outcome."""
        self.roll(now)
        self._put(self._newest, 1, int(failed))

    def roll(self, now: float) -> None:
        """Drop what has grown too old."""
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
        """Failed share of the calls, 0 to 1; 0 when there are none."""
        return self.failures / self.calls if self.calls else 0.0

    def resized(self, seconds: float, now: float) -> Window:
        """The same outcomes, each at the middle of its bucket's time, over other seconds."""
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
    """Counts outcomes and says whether the last failure was one too many."""

    __slots__ = ("config", "consecutive", "window")

    def __init__(self, config: BreakerConfig) -> None:
        self.config = config
        self.consecutive = 0
        self.window = Window(config.window)

    def reconfigure(self, config: BreakerConfig, now: float) -> None:
        """Take other numbers, keep what was counted."""
        if config.window != self.window.seconds:
            self.window = self.window.resized(config.window, now)
        self.config = config

    def success(self, now: float) -> None:
        """Count a success."""
        self.window.add(now, failed=False)
        self.consecutive = 0

    def failure(self, now: float) -> None:
        """Count a failure."""
        self.window.add(now, failed=True)
        self.consecutive += 1

    def throttled(self) -> None:
        """Count a refusal for asking too fast: it says nothing about the share that fails."""
        self.consecutive += 1

    def clear(self) -> None:
        """Begin anew, as a breaker does when it closes."""
        self.consecutive = 0
        self.window.clear()

    @property
    def consecutive_exceeded(self) -> bool:
        """Whether the rule of failures in a row is met."""
        return self.consecutive >= self.config.fail_max

    @property
    def failure_rate_exceeded(self) -> bool:
        """Whether the rule of the window is met."""
        window, config = self.window, self.config
        return window.calls >= config.min_calls and window.failure_rate >= config.failure_rate


def valid_hint(hint: float | None) -> float | None:
    """A server's hint in seconds, or None for one that says nothing (0, negative, not a number)."""
    return hint if hint is not None and hint > 0 else None


def open_duration(
    config: BreakerConfig, openings: int, hint: float | None, random: Callable[[], float]
) -> float:
    """Seconds that the breaker's `openings`-th opening in a row lasts.

    The doubling stops at `reset_max`, then jitter lengthens it by up to 10 %. A server's hint
    makes it no shorter, and is heard up to `reset_max`.
    """
    doublings = min(openings - 1, _MAX_DOUBLINGS)
    base: float = min(config.reset_timeout * 2.0**doublings, config.reset_max)
    return max(_jittered(base, random), min(hint or 0.0, config.reset_max))


def trip_duration(config: BreakerConfig, hint: float | None, random: Callable[[], float]) -> float:
    """Seconds to stay open when asking again soon cannot help: `reset_max`, or a longer hint.

    A longer hint is taken exactly as it is, up to 24 hours.
    """
    if hint is not None and hint > config.reset_max:
        return max(min(hint, MAX_HINT), config.reset_max)
    return _jittered(config.reset_max, random)


def longest_pause(config: BreakerConfig, cause: str | None) -> float:
    """Seconds that an opening of this cause lasts at most, by these numbers."""
    longest = config.reset_max * (1.0 + _JITTER) + _ROUNDING
    return max(longest, MAX_HINT) if cause in _AT_ONCE else longest


def _jittered(seconds: float, random: Callable[[], float]) -> float:
    return seconds * (1.0 + _JITTER * random())
