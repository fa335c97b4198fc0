"""Pacing in one process: requests in flight and images per minute, first come first served.

A caller joins the queue and holds its ticket in a ``with`` block::

    with limiter.join() as ticket:
        await ticket.granted      # one slot in flight, and one images-per-minute place
        ticket.spend()            # the request is sent: the place is used up
        ...

Leaving the block frees the slot; a place that was not spent goes back. Nothing here awaits, so
there is no moment at which a cancelled caller could leave something behind.
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
"""Seconds by which a timer may fire before its time without being armed again."""


class QueueFullError(Exception):
    """As many callers wait as are allowed to."""


class TokenSchedule:
    """Images-per-minute places: evenly spaced, up to ``burst`` saved up in quiet times.

    The generic cell rate algorithm: one number says when the next evenly spaced place is due.
    """

    def __init__(self, per_minute: float, burst: int) -> None:
        self.interval: float = 60.0 / per_minute
        self._slack = (burst - 1) * self.interval
        self._next = 0.0

    def reset(self) -> None:
        """Forget what was taken."""
        self._next = 0.0

    def ready_at(self) -> float:
        """Loop time at which the next place is free."""
        return self._next - self._slack

    def wait(self, now: float, ahead: int) -> float:
        """Return the seconds until a place is free for a caller with ``ahead`` before it."""
        start = max(self._next, now)
        return max(0.0, start + ahead * self.interval - self._slack - now)

    def take(self, now: float) -> float:
        """Use a place; returns a receipt for ``give_back``."""
        self._next = max(self._next, now) + self.interval
        return self._next

    def give_back(self, receipt: float) -> None:
        """Return a place, unless a later one was taken: two requests must not go out together."""
        if receipt == self._next:
            self._next -= self.interval


class Slot:
    """One caller's stand in the queue, then its slot."""

    def __init__(self, limiter: RateLimiter, useful_until: float) -> None:
        self._limiter = limiter
        self.useful_until = useful_until
        """Loop time after which a slot would come too late; its holder should leave by then."""
        self.waited = False
        """Whether it was not granted at once."""
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.receipt: float | None = None
        """The place taken, or None while waiting and after leaving."""
        self.granted_at: float = math.nan
        """Loop time at which it got its slot."""
        self.consumed: bool = False

    def __enter__(self) -> Self:
        """The queue was joined when the ticket was made."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Leave: the queue if still waiting, the slot if it was granted."""
        self._limiter.release(self)

    def consume(self) -> None:
        """The request is being sent: the images-per-minute place is used up."""
        self.consumed = True


class RateLimiter:
    """The queue in front of one provider.

    Belongs to one running event loop at a time; successive loops may use it. What callers of a
    closed loop have left behind is dropped when another loop asks.

    Args:
        max_concurrent: Requests in flight.
        per_minute: Images per minute.
        burst: Places that may be taken at once after a quiet time.
        max_queue: Callers that may wait; None for any number.
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
        """Tickets that were granted and have not left."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last_seen = 0.0
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._timer_loop: asyncio.AbstractEventLoop | None = None

    @property
    def in_flight(self) -> int:
        """Callers that have a slot."""
        return len(self._slots)

    def join(self, useful_until: float = math.inf) -> Slot:
        """Stand at the end of the queue.

        Args:
            useful_until: Loop time after which a slot would come too late.

        Raises:
            QueueFullError: ``max_queue`` callers wait already.
        """
        ticket = Slot(self, useful_until)
        self._queue.append(ticket)
        self._serve()
        ticket.waited = not ticket.granted.done()
        if self._max_queue is not None and self._waiting() > self._max_queue:
            self._queue.remove(ticket)
            raise QueueFullError
        return ticket

    def shortest_wait(self, latency: float | None = None) -> float:
        """Return the seconds that a newcomer waits, if every request takes ``latency``.

        Args:
            latency: Seconds; None where nothing is known: then only the pace is looked at, as if
                every slot were free.
        """
        now = self._now(asyncio.get_running_loop())  # which may drop callers of a closed loop
        ahead = len(self._queue)
        wait = self._place_wait(now, ahead)
        if latency is None or self.in_flight + ahead < self._max_concurrent:
            return wait
        # First in, first out, and all take equally long: slots are freed in the order in which
        # they were taken, so that a newcomer gets the one that the caller a full set before it
        # leaves, that one its predecessor's, and so on to the first of them, who waits for a slot
        # in use, or for its place in the pace.
        before, first = divmod(ahead, self._max_concurrent)
        starts = max(self._place_wait(now, first), self._slot_wait(now, first, latency))
        return max(wait, starts + before * latency)

    def _place_wait(self, now: float, ahead: int) -> float:
        """Return the seconds until the pace allows a caller with ``ahead`` before it to be sent."""
        return self._schedule.wait(now, ahead)

    def _slot_wait(self, now: float, ahead: int, latency: float) -> float:
        """Return the seconds until a slot is free for a caller with so many before it.

        ``ahead`` is less than the number of slots.
        """
        taken = ahead - (self._max_concurrent - self.in_flight)
        if taken < 0:
            return 0.0
        since = sorted(ticket.granted_at for ticket in self._slots)[taken]
        return min(max(0.0, since + latency - now), latency)

    def snapshot(self) -> QueueSnapshot:
        """Callers waiting and requests in flight, as plain numbers."""
        return {
            "waiting": len(self._queue),
            "in_flight": self.in_flight,
            "max_concurrent": self._max_concurrent,
            "interval_s": self._schedule.interval,
        }

    def _waiting(self) -> int:
        return len(self._queue)

    def _serve(self) -> None:
        """Grant what can be granted now, and come back when the next place is due."""
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
            self._reset_clock()  # a new loop, whose clock started anew
        self._last_seen = now
        return now

    def _drop_closed_loops(self) -> None:
        """Nobody waits on a closed loop, and nobody there gives a slot back."""
        self._queue = deque(each for each in self._queue if not _is_dead(each))
        for ticket in [each for each in self._slots if _is_dead(each)]:
            self._release(ticket)

    def _reset_clock(self) -> None:
        self._schedule.reset()

    def _grant_first(self, loop: asyncio.AbstractEventLoop, now: float) -> Slot | None:
        ticket = self._queue.popleft()
        if ticket.granted.done() or ticket.granted.get_loop() is not loop:
            return None  # its caller is gone, or belonged to a loop that is
        ticket.receipt = self._schedule.take(now)
        ticket.granted_at = now
        self._slots.add(ticket)
        ticket.granted.set_result(None)
        return ticket

    def _schedule_wakeup(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            if self._timer_loop is loop and self._timer_at <= when:
                return
            self._timer.cancel()
        # The moment is kept here: uvloop's handle for a moment that has passed does not know it.
        self._timer, self._timer_at, self._timer_loop = loop.call_at(when, self._wake), when, loop

    def _wake(self) -> None:
        self._timer = None
        self._serve()

    def release(self, ticket: Slot) -> None:
        """Give up the ticket's stand or slot; once is enough, more often does no harm."""
        if ticket in self._slots:
            self._release(ticket)
        elif ticket in self._queue:
            self._queue.remove(ticket)
        else:
            return  # dropped with its loop, or it has left before
        try:
            self._serve()
        except RuntimeError:  # no running loop: an abandoned task is being collected
            return

    def _release(self, ticket: Slot) -> None:
        """Free its slot; its place, too, if it was not spent."""
        self._slots.discard(ticket)
        if ticket.receipt is not None and not ticket.consumed:
            self._schedule.give_back(ticket.receipt)
        ticket.receipt = None


def _is_dead(ticket: Slot) -> bool:
    return ticket.granted.get_loop().is_closed()
