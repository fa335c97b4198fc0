"""A short cut for calls that meet no trouble, which is nearly all of them.

A call that the first route serves at once passes the ladder without leaving a trace but in the
queue and in the breaker. Here such a call joins the same queue and takes its permit from the same
breaker, and the rungs between are left out. What it meets is known when its turn comes: as soon as
that is anything but an image in time, or the breaker stirs while it queues, it is handed to the
ladder with its place in the queue, as if it had come that way from the start. Nothing is guessed:
a run with the short cut equals one without it (tests/test_tuning_express.py).
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING

from resilient_imagen.breaker import BreakerState, Rejection
from resilient_imagen.limiter.memory import Pacer
from resilient_imagen.reasons import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from resilient_imagen.breaker import Permit, Transition
    from resilient_imagen.lane import Lane
    from resilient_imagen.limiter.memory import Ticket
    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.truth import Met
    from resilient_imagen.tuning.world import World

__all__ = ["Express", "HandingPacer"]

_handed: ContextVar[list[Ticket]] = ContextVar("handed")
"""The place in the queue that a call brings along, until it is taken."""


class HandingPacer(Pacer):
    """A queue that a call may enter with the place it holds already."""

    def join(self) -> Ticket:
        """Stand at the end of the queue, or where the caller stands already.

        Raises:
            QueueFullError: As the queue says.
        """
        brought = _handed.get(None)
        return brought.pop() if brought else super().join()


class Express:
    """The short cut on the first route.

    Args:
        lane: The first route; its queue is a `HandingPacer`.
        world: Says what requests meet, and notes what was sent.
        climb: Starts a call on the ladder, in a context of its own.
        done: Told the call, when it is served.
    """

    def __init__(
        self,
        lane: Lane,
        world: World,
        climb: Callable[[int, float, Context], None],
        done: Callable[[int], None],
    ) -> None:
        self._lane = lane
        self._world = world
        self._climb = climb
        self._done = done
        self._closed = lane.gate.numbers().state is BreakerState.CLOSED
        lane.gate.subscribe(self._note)
        self.loop = asyncio.get_running_loop()

    @staticmethod
    def suits(settings: Settings) -> bool:
        """Whether nothing but a failure or the breaker can turn a call off its way."""
        return settings.deadline is None and settings.max_queue is None

    def start(self, call: int) -> bool:
        """Take the call, unless the breaker is not simply closed."""
        if not self._closed:
            return False
        ticket = self._lane.pacer.join()
        if ticket.granted.done():
            self.send(call, ticket, self.loop.time())
        else:
            _Waiting(self, call, ticket, self.loop.time())
        return True

    def _note(self, change: Transition) -> None:
        if not change.shadow:
            self._closed = change.to_state is BreakerState.CLOSED

    def send(self, call: int, ticket: Ticket, asked: float) -> None:
        """The call's turn has come: let it meet what it meets."""
        lane, now = self._lane, self.loop.time()
        met = self._world.meet(call, 0, now, [])
        if met.reason is not None or met.latency >= lane.timeout:
            self.hand_over(call, ticket, asked)
            return
        permit = lane.gate.admit()
        if isinstance(permit, Rejection):
            self.hand_over(call, ticket, asked)
            return
        permit.begin()
        ticket.spend()
        self.loop.call_later(met.latency, self._served, call, ticket, permit, met, now)

    def _served(self, call: int, ticket: Ticket, permit: Permit, met: Met, sent_at: float) -> None:
        latency = self.loop.time() - sent_at
        self._world.book(call, 0, sent_at, latency, None, met)
        self._lane.latencies.append(latency)
        permit.settle(Verdict.SUCCESS)
        self._lane.pacer.leave(ticket)
        self._done(call)

    def hand_over(self, call: int, ticket: Ticket, asked: float) -> None:
        """Let the ladder go on with the call, with its place unless the breaker is in the way."""
        context = copy_context()
        if self._lane.rejects_at(self.loop.time()):
            self._lane.pacer.leave(ticket)
        else:
            context.run(_handed.set, [ticket])
        self._climb(call, asked, context)

    def stirred(self) -> asyncio.Future[None]:
        """A future, resolved when the breaker changes."""
        return self._lane.gate.changed()


class _Waiting:
    """A call in the queue: woken by its turn or by the breaker, whichever is first."""

    __slots__ = ("_asked", "_call", "_express", "_stirred", "_ticket")

    def __init__(self, express: Express, call: int, ticket: Ticket, asked: float) -> None:
        self._express = express
        self._call = call
        self._ticket = ticket
        self._asked = asked
        self._stirred = express.stirred()
        self._stirred.add_done_callback(self._breaker)
        ticket.granted.add_done_callback(self._turn)

    def _turn(self, _granted: asyncio.Future[None]) -> None:
        if not self._stirred.done():
            self._stirred.cancel()
            self._express.send(self._call, self._ticket, self._asked)

    def _breaker(self, stirred: asyncio.Future[None]) -> None:
        if not stirred.cancelled():
            self._express.hand_over(self._call, self._ticket, self._asked)
