"""How long a loop was busy with itself: whatever the machine, or anybody else on it, does."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Mapping
from pathlib import Path

THREADS = Path("/proc/self/task")
FRESH = 0.02
"""Seconds for which a look at the threads' waits is good enough."""


class StallWatch(selectors.DefaultSelector):
    """A loop's selector that notes the longest time between two looks at the sockets.

    That is how long everybody on the loop had to wait for one callback, or for several in a row.
    What was computed counts in full. Of the rest, which is blocking, all counts but the time for
    which this process's threads stood ready and got no core: Linux knows it of each thread, and
    any other one may have held the interpreter's lock just then. That is looked up every 20 ms at
    most, so a little more may be left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.worst = 0.0
        """Seconds."""
        self._waits = _waits()
        self._computed = time.thread_time()
        self._began = self._looked = time.monotonic()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As ever, with a note of what was before."""
        self._note(time.monotonic() - self._began)
        events = super().select(timeout)
        if time.monotonic() - self._looked > FRESH:
            self._waits, self._looked = _waits(), time.monotonic()
        self._computed = time.thread_time()
        self._began = time.monotonic()  # last, so that all that follows is in the other two
        return events

    def _note(self, busy: float) -> None:
        if busy > self.worst:
            before = self._waits
            waited = sum(wait - before.get(thread, 0.0) for thread, wait in _waits().items())
            computed = time.thread_time() - self._computed
            self.worst = max(self.worst, computed + max(busy - computed - waited, 0.0))


def _waits() -> Mapping[str, float]:
    """For each thread of this process the seconds for which it stood ready without a core."""
    found = {}
    for thread in os.listdir(THREADS) if THREADS.exists() else ():  # noqa: PTH208 - it is quick
        try:
            _, waited, _ = (THREADS / thread / "schedstat").read_bytes().split()
        except OSError:
            continue  # it has ended meanwhile
        found[thread] = int(waited) / 1e9
    return found
