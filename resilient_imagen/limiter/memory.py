"""Pacing in one process: requests in flight and images per minute, first come first served.

A caller joins the queue and holds its ticket in a ``with`` block::

    with pacer.join() as ticket:
        await ticket.granted      # one slot in flight, and one images-per-minute place
        ticket.spend()            # the request is sent: the place is used up
        ...

Leaving the block frees the slot; a place that was not spent goes back. Nothing here awaits, so
there is no moment at which a cancelled caller could leave something behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["EARLY", "Pacer", "QueueFullError", "Ticket"]

EARLY = 1e-6
"""Seconds by which a timer may fire before its time without being armed again."""


class QueueFullError(Exception):
    """As many callers wait as are allowed to."""


class Places:
    """Images-per-minute places: evenly spaced, up to ``burst`` saved up in quiet times.

    The generic cell rate algorithm: one number says when the next evenly spaced place is due.
    """

    def __init__(self, per_minute: float, burst: int) -> None:
        self.interval = 60.0 / per_minute
        self._slack = (burst - 1) * self.interval
        self._next = 0.0

    def reset(self) -> None:
        """Forget what was taken."""
        self._next = 0.0

    def ready_at(self, ahead: int = 0) -> float:
        """Loop time at which a place is free for whoever has ``ahead`` callers before it."""
        return self._next + ahead * self.interval - self._slack

    def take(self, now: float) -> float:
        """Use a place; returns a receipt for ``give_back``."""
        self._next = max(self._next, now) + self.interval
        return self._next

    def give_back(self, receipt: float) -> None:
        """Return a place, unless a later one was taken: two requests must not go out together."""
        if receipt == self._next:
            self._next -= self.interval


class Ticket:
    """One caller's stand in the queue, then its slot."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.receipt: float | None = None
        """The place taken, or None while waiting and after leaving."""
        self.spent = False

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
        self._pacer.leave(self)

    def spend(self) -> None:
        """The request is being sent: the images-per-minute place is used up."""
        self.spent = True


class Pacer:
    """The queue in front of one provider.

    Belongs to one running event loop at a time; successive loops may use it.

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
        self.in_flight = 0
        self._max_concurrent = max_concurrent
        self._max_queue = max_queue
        self._places = Places(per_minute, burst)
        self._queue: deque[Ticket] = deque()
        self._last_seen = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_loop: asyncio.AbstractEventLoop | None = None

    def join(self) -> Ticket:
        """Stand at the end of the queue.

        Raises:
            QueueFullError: ``max_queue`` callers wait already.
        """
        ticket = Ticket(self)
        self._queue.append(ticket)
        self._serve()
        if self._max_queue is not None and self._waiting() > self._max_queue:
            self._queue.remove(ticket)
            raise QueueFullError
        return ticket

    def shortest_wait(self) -> float:
        """Seconds that a newcomer waits at least, were every slot free at once."""
        now = asyncio.get_running_loop().time()
        return max(0.0, self._places.ready_at(len(self._queue)) - now)

    def snapshot(self) -> dict[str, Any]:
        """Callers waiting and requests in flight, as plain numbers."""
        return {
            "waiting": len(self._queue),
            "in_flight": self.in_flight,
            "max_concurrent": self._max_concurrent,
            "interval_s": self._places.interval,
        }

    def _waiting(self) -> int:
        return len(self._queue)

    def _serve(self) -> None:
        """Grant what can be granted now, and come back when the next place is due."""
        loop = asyncio.get_running_loop()
        now = self._now(loop)
        while self._queue and self.in_flight < self._max_concurrent:
            ready_at = self._places.ready_at()
            if ready_at - now > EARLY:
                self._come_back(loop, ready_at)
                return
            self._grant_first(loop, now)

    def _now(self, loop: asyncio.AbstractEventLoop) -> float:
        now = loop.time()
        if now < self._last_seen:
            self._begin_anew()  # a new loop, whose clock started anew
        self._last_seen = now
        return now

    def _begin_anew(self) -> None:
        self._places.reset()

    def _grant_first(self, loop: asyncio.AbstractEventLoop, now: float) -> Ticket | None:
        ticket = self._queue.popleft()
        if ticket.granted.done() or ticket.granted.get_loop() is not loop:
            return None  # its caller is gone, or belonged to a loop that is
        ticket.receipt = self._places.take(now)
        self.in_flight += 1
        ticket.granted.set_result(None)
        return ticket

    def _come_back(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            if self._timer_loop is loop and self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer, self._timer_loop = loop.call_at(when, self._wake), loop

    def _wake(self) -> None:
        self._timer = None
        self._serve()

    def leave(self, ticket: Ticket) -> None:
        """Give up the ticket's stand or slot; once is enough, more often does no harm."""
        if ticket.receipt is None:
            if ticket in self._queue:
                self._queue.remove(ticket)
        else:
            self.in_flight -= 1
            if not ticket.spent:
                self._places.give_back(ticket.receipt)
            ticket.receipt = None
        try:
            self._serve()
        except RuntimeError:  # no running loop: an abandoned task is being collected
            return
