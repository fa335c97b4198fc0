"""Rate limiter of one process: requests in flight and images per minute, first in, first out.

A caller joins the queue and holds its slot in a ``with`` block::

    with limiter.join() as slot:
        await slot.granted        # a concurrency slot and an images-per-minute place
        slot.consume()            # the request is sent: the place is used up
        ...

``take_free`` returns a slot without the queue, if one is free now. Leaving the block frees the slot
and returns a place that was not consumed. The limiter itself never awaits, so a cancelled caller
cannot leak a slot or a place.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from resilient_imagen.snapshots import QueueSnapshot

__all__ = ["CLOCK_TOLERANCE", "QueueFullError", "RateLimiter", "Slot"]

CLOCK_TOLERANCE = 1e-6
"""Seconds by which a timer may fire early without being armed again."""


class QueueFullError(Exception):
    """The queue is full."""


class TokenSchedule:
    """The schedule of images-per-minute places: evenly spaced, with bursts after an idle time.

    It is the generic cell rate algorithm (GCRA); its state is the time of the next place.

    Args:
        per_minute: Places per minute.
        burst: Places that may be taken at once after an idle time.
        first: Loop time of the first place.
    """

    def __init__(self, per_minute: float, burst: int, *, first: float = 0.0) -> None:
        self.interval: float = 60.0 / per_minute
        self._slack = (burst - 1) * self.interval
        self._next = first

    def reconfigure(self, now: float, per_minute: float, burst: int) -> None:
        """Change the rate. The wait until the next place changes in proportion."""
        before, self.interval = self.interval, 60.0 / per_minute
        self._slack = (burst - 1) * self.interval
        self._next = now + (self._next - now) * self.interval / before

    def reset(self) -> None:
        """Forget all places that were taken."""
        self._next = 0.0

    def ready_at(self) -> float:
        """Return the loop time at which the next place is free."""
        return self._next - self._slack

    def wait(self, now: float, ahead: int) -> float:
        """Return the seconds until a place is free for a caller with ``ahead`` before it."""
        start = max(self._next, now)
        return max(0.0, start + ahead * self.interval - self._slack - now)

    def take(self, now: float) -> float:
        """Take a place; return a receipt for ``give_back``."""
        self._next = max(self._next, now) + self.interval
        return self._next

    def give_back(self, receipt: float) -> None:
        """Give a place back. If a later one was taken, it is lost, to keep requests spaced."""
        if receipt == self._next:
            self._next -= self.interval


class Slot:
    """One caller's position in the queue, and then its concurrency slot and place."""

    def __init__(
        self, limiter: RateLimiter, loop: asyncio.AbstractEventLoop, useful_until: float = math.inf
    ) -> None:
        self._limiter = limiter
        self.useful_until = useful_until
        """Loop time after which a grant would be too late; the caller should leave by then."""
        self.waited: bool
        """Whether the slot was not granted at once. The limiter sets it."""
        self.granted: asyncio.Future[None] = loop.create_future()
        self.receipt: float | None = None
        """The receipt of the place taken; None while waiting and after leaving."""
        self.granted_at: float = math.nan
        """Loop time at which the slot was granted."""
        self.consumed: bool = False

    def __enter__(self) -> Self:
        """Return the slot, which is in the queue or granted already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Leave the queue, or free the slot if it was granted."""
        self._limiter.release(self)

    def consume(self) -> None:
        """Use up the images-per-minute place, because the request is being sent."""
        self.consumed = True


class RateLimiter:
    """The limiter and queue of one provider.

    It is used by one running event loop at a time; successive loops may use it. The slots and
    waiting callers of a closed loop are dropped when another loop uses it.

    Args:
        max_concurrent: Maximum of requests in flight.
        per_minute: Images per minute.
        burst: Places that may be taken at once after an idle time.
        max_queue: Maximum of waiting callers; None for no maximum.
    """

    def __init__(
        self,
        *,
        max_concurrent: int,
        per_minute: float,
        burst: int = 1,
        max_queue: int | None = None,
    ) -> None:
        self._max_concurrent = max_concurrent
        self._max_queue = max_queue
        self._schedule = TokenSchedule(per_minute, burst)
        self._queue: deque[Slot] = deque()
        self._slots: set[Slot] = set()
        """Slots that are granted and not yet released."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last_seen = 0.0
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._timer_loop: asyncio.AbstractEventLoop | None = None

    def reconfigure(self, *, max_concurrent: int, per_minute: float, burst: int) -> None:
        """Change the limits on the running loop; callers in the queue keep their order.

        Requests in flight continue, even if there are more than the new ``max_concurrent``.
        """
        self._max_concurrent = max_concurrent
        self._schedule.reconfigure(self._now(asyncio.get_running_loop()), per_minute, burst)
        self._serve()

    @property
    def in_flight(self) -> int:
        """Number of callers that have a slot."""
        return len(self._slots)

    def join(self, useful_until: float = math.inf) -> Slot:
        """Join the end of the queue.

        Args:
            useful_until: Loop time after which a grant would be too late.

        Raises:
            QueueFullError: ``max_queue`` callers wait already.
        """
        slot = Slot(self, asyncio.get_running_loop(), useful_until)
        self._queue.append(slot)
        self._serve()
        slot.waited = not slot.granted.done()
        if self._max_queue is not None and self._waiting() > self._max_queue:
            self._queue.remove(slot)
            raise QueueFullError
        return slot

    def take_free(self) -> Slot | None:
        """Return a granted slot if nobody waits and a slot and a place are free now, else None."""
        loop = asyncio.get_running_loop()
        now = self._now(loop)
        if not self._is_free(now):
            return None
        slot = Slot(self, loop)
        slot.waited = False
        self._grant(slot, now)
        return slot

    def is_free(self) -> bool:
        """Return whether a new caller would be granted a slot at once."""
        return self._is_free(self._now(asyncio.get_running_loop()))

    def _is_free(self, now: float) -> bool:
        if self._queue or len(self._slots) >= self._max_concurrent:
            return False
        return self._place_wait(now, 0) <= CLOCK_TOLERANCE

    def shortest_wait(self, latency: float | None = None, slot: Slot | None = None) -> float:
        """Return the seconds that a new caller waits, if every request takes ``latency``.

        Args:
            latency: Seconds; None if unknown: then only images per minute count, as if every slot
                were free.
            slot: A caller in the queue, to return the seconds that this one waits.
        """
        now = self._now(asyncio.get_running_loop())  # which may drop callers of a closed loop
        ahead = len(self._queue) if slot is None else self._queue.index(slot)
        wait = self._place_wait(now, ahead)
        if latency is None or self.in_flight + ahead < self._max_concurrent:
            return wait
        # All requests take equally long, so slots are freed in the order in which they were taken.
        # The queue is served in rounds of `max_concurrent`: each caller gets the slot of the caller
        # one round before it. A caller of the first round waits for a slot in use or for a place.
        before, first = divmod(ahead, self._max_concurrent)
        starts = max(self._place_wait(now, first), self._slot_wait(now, first, latency))
        return max(wait, starts + before * latency)

    def _place_wait(self, now: float, ahead: int) -> float:
        """Return the seconds until a place is free for a caller with ``ahead`` before it."""
        return self._schedule.wait(now, ahead)

    def _slot_wait(self, now: float, ahead: int, latency: float) -> float:
        """Return the seconds until a slot is free for a caller with ``ahead`` before it.

        ``ahead`` must be less than the number of slots.
        """
        taken = ahead - (self._max_concurrent - self.in_flight)
        if taken < 0:
            return 0.0
        since = sorted(slot.granted_at for slot in self._slots)[taken]
        return min(max(0.0, since + latency - now), latency)

    def snapshot(self) -> QueueSnapshot:
        """Return the number of waiting callers and requests in flight, as plain JSON."""
        return {
            "waiting": len(self._queue),
            "in_flight": self.in_flight,
            "max_concurrent": self._max_concurrent,
            "interval_s": self._schedule.interval,
        }

    def _waiting(self) -> int:
        return len(self._queue)

    def _serve(self) -> None:
        """Grant slots as far as possible, and set the timer for the next place."""
        if not self._queue:
            return
        loop = asyncio.get_running_loop()
        now = self._now(loop)
        while self._queue and self.in_flight < self._max_concurrent:
            ready_at = self._schedule.ready_at()
            if ready_at - now > CLOCK_TOLERANCE:
                self._schedule_wakeup(loop, ready_at)
                return
            self._grant_first(loop, now)

    def _now(self, loop: asyncio.AbstractEventLoop) -> float:
        if loop is not self._loop:
            self._loop = loop
            self._drop_closed_loops()
        now = loop.time()
        if now < self._last_seen:
            self._reset_clock()  # a new loop, whose clock begins at an earlier time
        self._last_seen = now
        return now

    def _drop_closed_loops(self) -> None:
        """Drop slots and waiting callers of closed loops, which are never released."""
        self._queue = deque(each for each in self._queue if not _is_dead(each))
        for slot in [each for each in self._slots if _is_dead(each)]:
            self._release(slot)

    def _reset_clock(self) -> None:
        self._schedule.reset()

    def _grant_first(self, loop: asyncio.AbstractEventLoop, now: float) -> Slot | None:
        slot = self._queue.popleft()
        if slot.granted.done() or slot.granted.get_loop() is not loop:
            return None  # its caller was cancelled, or belongs to another loop
        self._grant(slot, now)
        return slot

    def _grant(self, slot: Slot, now: float) -> None:
        slot.receipt = self._schedule.take(now)
        slot.granted_at = now
        self._slots.add(slot)
        slot.granted.set_result(None)

    def _schedule_wakeup(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            if self._timer_loop is loop and self._timer_at <= when:
                return
            self._timer.cancel()
        # `when` is kept here, because uvloop's handle does not have it once the time has passed.
        self._timer, self._timer_at, self._timer_loop = loop.call_at(when, self._wake), when, loop

    def _wake(self) -> None:
        self._timer = None
        self._serve()

    def release(self, slot: Slot) -> None:
        """Leave the queue or free the slot; idempotent."""
        if slot in self._slots:
            self._release(slot)
        elif slot in self._queue:
            self._queue.remove(slot)
        else:
            return  # released already, or dropped with its loop
        try:
            self._serve()
        except RuntimeError:  # no running loop: an abandoned task is being collected
            return

    def _release(self, slot: Slot) -> None:
        """Free the slot, and return its place if it was not consumed."""
        self._slots.discard(slot)
        if slot.receipt is not None and not slot.consumed:
            self._schedule.give_back(slot.receipt)
        slot.receipt = None


def _is_dead(slot: Slot) -> bool:
    return slot.granted.get_loop().is_closed()
