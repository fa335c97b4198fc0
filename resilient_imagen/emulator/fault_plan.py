"""When faults strike: the next so many requests, windows of time, or until healed."""

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
    """Loop time its seconds count from; None: the moment the plan is anchored."""


class FaultPlan:
    """One vendor's faults. What is asked for first wins: the next requests, windows, standing.

    A plan knows no clock: the caller says what time it is.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._anchor: float | None = None
        self._next: list[_PlannedFault] = []
        self._windows: list[_PlannedWindow] = []
        self._standing: dict[str | None, Fault] = {}

    def add_next(self, fault: Fault, times: int, model: str | None) -> None:
        """Strike the next ``times`` requests (of this model, if one is given).

        Raises:
            ValueError: ``times`` is below 1.
        """
        if times < 1:
            raise ValueError("times must be at least 1")
        self._next.append(_PlannedFault(fault, times, model))

    def set_standing(self, fault: Fault, model: str | None) -> None:
        """Strike every request (of this model, if one is given) until cleared."""
        self._standing[model] = fault

    def add_windows(
        self,
        windows: Iterable[tuple[float, float, Fault]],
        model: str | None,
        origin: float | None,
    ) -> None:
        """Strike within (start, end) seconds after ``origin``; the first matching window wins.

        Raises:
            ValueError: A window ends before it starts, or starts before 0.
        """
        made = [_PlannedWindow(start, end, fault, model, origin) for start, end, fault in windows]
        if any(not 0 <= window.start < window.end for window in made):
            raise ValueError("a window is (start, end, fault) with 0 <= start < end, in seconds")
        self._windows.extend(made)

    def anchor(self, now: float) -> None:
        """Let windows without an origin count from now; only the first call does anything."""
        if self._anchor is None:
            self._anchor = now

    def clear(self) -> None:
        """Forget every fault."""
        self._next.clear()
        self._windows.clear()
        self._standing.clear()

    def choose(self, now: float, model: str) -> Fault | None:
        """The fault for a request that arrives now, or None when it is to be served."""
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
