"""Axes of charts: round ticks for numbers and times, and positions in percent of the plot."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Axis", "numbers", "times"]

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86400.0
_STEPS: Final = (
    *(n * _MINUTE for n in (1, 2, 5, 10, 15, 30)), *(n * _HOUR for n in (1, 2, 3, 6, 12)),
    *(n * _DAY for n in (1, 2, 3, 7, 14, 28, 91, 365)),
)  # fmt: skip
"""Seconds between ticks of time."""


class Axis(NamedTuple):
    """A linear axis."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    """Values and their labels."""

    def percent(self, value: float) -> float:
        """Return the position of a value, from 0 to 100."""
        return 100.0 * (value - self.low) / (self.high - self.low)

    def contains(self, value: float) -> bool:
        """Return whether a value is within the axis."""
        return self.low <= value <= self.high


def numbers(low: float, high: float, most: int, style: str = "", *, scale: float = 1.0) -> Axis:
    """Return an axis of numbers.

    Args:
        low: The smallest value.
        high: The largest value.
        most: Maximum number of ticks.
        style: The format of labels; empty takes as many decimals as the ticks need.
        scale: Factor on values in labels.
    """
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    rough = (high - low) * scale / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * (1 - 1e-9))
    style = style or f".{max(0, -math.floor(math.log10(step) + 1e-9))}f"
    first, last = math.ceil(low * scale / step - 1e-9), math.floor(high * scale / step + 1e-9)
    ticks = [(n * step / scale, format(n * step, style)) for n in range(first, last + 1)]
    return Axis(low, high, ticks)


def times(origin: float, seconds: float, most: int = 6) -> Axis:
    """Return an axis of UTC times, whose values are seconds since ``origin``.

    Args:
        origin: The start, in seconds since the epoch.
        seconds: The length.
        most: Maximum number of ticks.
    """
    step = next((each for each in _STEPS if seconds / each <= most), seconds / most)
    first, last = math.ceil(origin / step), math.floor((origin + seconds) / step)
    ticks = []
    for number in range(first, last + 1):
        at = datetime.fromtimestamp(number * step, UTC)
        midnight = at.hour == at.minute == 0
        label = f"{at.day} {at:%b}" if step >= _DAY or midnight else f"{at:%H:%M}"
        ticks.append((number * step - origin, label))
    return Axis(0.0, max(seconds, 1.0), ticks)
