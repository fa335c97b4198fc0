"""Stall watch: measure how long callbacks block a loop, independent of the machine's load."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Mapping
from pathlib import Path

THREADS = Path("/proc/self/task")
FRESH = 0.02
"""Seconds for which the measured waits of threads are reused."""


class StallWatch(selectors.DefaultSelector):
    """A selector that records the longest time between two polls of the sockets.

    This is the time for which one callback, or several in sequence, blocked the loop. CPU time
    counts in full. Other time counts, except the time in which threads of this process were
    runnable without a core: Linux reports it for each thread, and any thread may have held the
    interpreter lock. It is read every 20 ms at most, so slightly too much may be subtracted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.worst = 0.0
        """The longest stall in seconds."""
        self._waits = _waits()
        self._computed = time.thread_time()
        self._began = self._looked = time.monotonic()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Poll the sockets, and record the time since the last poll."""
        self._note(time.monotonic() - self._began)
        events = super().select(timeout)
        if time.monotonic() - self._looked > FRESH:
            self._waits, self._looked = _waits(), time.monotonic()
        self._computed = time.thread_time()
        self._began = time.monotonic()  # last: includes the time of _waits()
        return events

    def _note(self, busy: float) -> None:
        if busy > self.worst:
            before = self._waits
            waited = sum(wait - before.get(thread, 0.0) for thread, wait in _waits().items())
            computed = time.thread_time() - self._computed
            self.worst = max(self.worst, computed + max(busy - computed - waited, 0.0))


def _waits() -> Mapping[str, float]:
    """Return the seconds for which each thread of this process was runnable without a core."""
    found = {}
    for thread in os.listdir(THREADS) if THREADS.exists() else ():  # noqa: PTH208 - it is quick
        try:
            _, waited, _ = (THREADS / thread / "schedstat").read_bytes().split()
        except OSError:
            continue  # the thread has ended
        found[thread] = int(waited) / 1e9
    return found
