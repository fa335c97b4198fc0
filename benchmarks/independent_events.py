"""Discrete events: virtual time, signals, and processes that wait for either.

The machinery of `independent_client`, which simulates calls without the library.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator
from itertools import count
from typing import TypeAlias, TypeVar

__all__ = ["Clock", "Process", "Signal", "Waits"]

T = TypeVar("T")


class Signal:
    """An event that processes wait for, once or repeatedly."""

    def __init__(self) -> None:
        self.fired: bool = False
        self._waiting: list[_Waiter] = []

    def fire(self) -> None:
        """Wake all processes that wait for it."""
        self.fired = True
        woken, self._waiting = self._waiting, []
        for waiter in woken:
            waiter.wake()

    def add(self, waiter: _Waiter) -> None:
        """Wake a process at the next firing."""
        self._waiting.append(waiter)


Waits: TypeAlias = Generator[tuple[float, tuple[Signal, ...]], None, T]
"""A part of a process. It yields seconds and signals, and goes on at the first that comes."""
Process: TypeAlias = Waits[None]


class _Waiter:
    """One wait of a process."""

    def __init__(self, clock: Clock, process: Process) -> None:
        self._clock, self._process, self._over = clock, process, False

    def wake(self) -> None:
        """Go on with the process, if nothing else has woken it."""
        if not self._over:
            self._over = True
            self._clock.at(self._clock.now, lambda: self._clock.step(self._process))


class Clock:
    """Virtual time, and a queue of events."""

    def __init__(self) -> None:
        self.now: float = 0.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()

    def at(self, when: float, do: Callable[[], object]) -> None:
        """Call a function at a time, or now if that has passed."""
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), do))

    def step(self, process: Process) -> None:
        """Run a process until its next wait."""
        wait = next(process, None)
        if wait is None:
            return
        seconds, signals = wait
        waiter = _Waiter(self, process)
        for signal in signals:
            signal.add(waiter)
        if seconds < math.inf:
            self.at(self.now + seconds, waiter.wake)

    def run(self) -> None:
        """Process all events."""
        while self._events:
            self.now, _, do = heapq.heappop(self._events)
            do()
