"""Fault plan: schedule faults for the next requests, for time windows, or until cleared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from resilient_imagen.emulator.faults import Fault

__all__ = ["FaultPlan"]


@dataclass(slots=True)
class _PlannedFault:
    fault: Fault
    times: int
    model: str | None


@dataclass(frozen=True, slots=True)
class _PlannedWindow:
    start: float
    end: float
    fault: Fault
    model: str | None
    origin: float | None
    """Loop time from which its seconds count; None means the time when the plan is anchored."""


class FaultPlan:
    """One vendor's faults. Faults for the next requests come first, then windows, then standing.

    A plan has no clock; callers pass the time.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._anchor: float | None = None
        self._next: list[_PlannedFault] = []
        self._windows: list[_PlannedWindow] = []
        self._standing: dict[str | None, Fault] = {}

    def add_next(self, fault: Fault, times: int, model: str | None) -> None:
        """Apply a fault to the next ``times`` requests (of ``model``, if it is given).

        Raises:
            ValueError: ``times`` is below 1.
        """
        if times < 1:
            raise ValueError("times must be at least 1")
        self._next.append(_PlannedFault(fault, times, model))

    def set_standing(self, fault: Fault, model: str | None) -> None:
        """Apply a fault to every request (of ``model``, if it is given) until cleared."""
        self._standing[model] = fault

    def add_windows(
        self,
        windows: Iterable[tuple[float, float, Fault]],
        model: str | None,
        origin: float | None,
    ) -> None:
        """Apply faults within (start, end) seconds after ``origin``; the first match wins.

        Raises:
            ValueError: A window ends before it starts, or starts before 0.
        """
        made = [_PlannedWindow(start, end, fault, model, origin) for start, end, fault in windows]
        if any(not 0 <= window.start < window.end for window in made):
            raise ValueError("a window is (start, end, fault) with 0 <= start < end, in seconds")
        self._windows.extend(made)

    def anchor(self, now: float) -> None:
        """Set the origin of windows without one to now; further calls have no effect."""
        if self._anchor is None:
            self._anchor = now

    def clear(self) -> None:
        """Clear all faults."""
        self._next.clear()
        self._windows.clear()
        self._standing.clear()

    def choose(self, now: float, model: str) -> Fault | None:
        """Return the fault for a request that arrives now, or None."""
        self.anchor(now)
        fault = self._take_next(model) or self._in_window(now, model)
        fault = fault or self._standing.get(model) or self._standing.get(None)
        if fault is None or (fault.share < 1 and self._rng.random() >= fault.share):
            return None
        return fault

    def _take_next(self, model: str) -> Fault | None:
        for entry in self._next:
            if entry.model in (None, model):
                entry.times -= 1
                if not entry.times:
                    self._next.remove(entry)
                return entry.fault
        return None

    def _in_window(self, now: float, model: str) -> Fault | None:
        for window in self._windows:
            origin = self._anchor if window.origin is None else window.origin
            since = now - (origin or 0.0)
            if window.model in (None, model) and window.start <= since < window.end:
                return window.fault
        return None
