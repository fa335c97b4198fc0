"""A short cut for calls that meet no trouble, which is nearly all of them.

A call that a route serves at once passes the ladder without leaving a trace but in the queue and in
the breaker. Here such a call joins the same queue and takes its permit from the same breaker, and
the rungs between are left out. What it meets is known when its turn comes: as soon as that is
anything but an image in time, or the breaker stirs while it queues, it is handed to the ladder with
its place in the queue, as if it had come that way from the start. Nothing is guessed: a run with
the short cut equals one without it (tests/test_tuning_express.py).
"""

from __future__ import annotations

from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from resilient_imagen.breaker import BreakerState, Rejection
from resilient_imagen.limiter.memory import Pacer
from resilient_imagen.reasons import Verdict

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from contextvars import Context

    from resilient_imagen.breaker import Permit, Transition
    from resilient_imagen.lane import Lane
    from resilient_imagen.limiter.memory import Ticket
    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.loop import LeanLoop
    from resilient_imagen.tuning.truth import Met
    from resilient_imagen.tuning.world import World

__all__ = ["Climber", "Express", "HandingPacer"]

_handed: ContextVar[list[Ticket]] = ContextVar("handed")
"""The place in the queue that a call brings along, until it is taken."""


class HandingPacer(Pacer):
    """A queue that a call may enter with the place it holds there already."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self._lent: set[Ticket] = set()

    def join(self) -> Ticket:
        """Stand at the end of the queue, or where the caller stands already.

        Raises:
            QueueFullError: As the queue says.
        """
        brought = _handed.get(None)
        if brought and brought[0] in self._lent:
            self._lent.discard(brought[0])
            return brought.pop()
        return super().join()

    def lend(self, ticket: Ticket) -> Context:
        """A context in which the next to join takes over this place."""
        self._lent.add(ticket)
        context = copy_context()
        context.run(_handed.set, [ticket])
        return context


class Climber(NamedTuple):
    """A call that goes on by the ladder."""

    call: int
    asked: float
    """When it came."""
    route: int
    """Routes before this one have turned it away already."""
    context: Context | None


class _Rider(NamedTuple):
    """A call on the short cut."""

    call: int
    asked: float
    route: int
    ticket: Ticket


class Express:
    """The short cut.

    Args:
        loop: Whose time it is.
        lanes: The routes; their queues are `HandingPacer`.
        world: Says what requests meet, and notes what was sent.
        climb: Starts a call on the ladder.
        done: Told the call and the route that served it.
    """

    def __init__(
        self,
        loop: LeanLoop,
        lanes: Sequence[Lane],
        world: World,
        climb: Callable[[Climber], None],
        done: Callable[[int, int], None],
    ) -> None:
        self._loop = loop
        self._lanes = lanes
        self._world = world
        self._climb = climb
        self._done = done
        self._closed = [lane.gate.numbers().state is BreakerState.CLOSED for lane in lanes]
        for route, lane in enumerate(lanes):
            lane.gate.subscribe(partial(self._note, route), inline=True)

    @staticmethod
    def suits(settings: Settings) -> bool:
        """Whether nothing but a failure or a breaker can turn a call off its way."""
        return (
            settings.deadline is None
            and settings.max_queue is None
            and settings.when_all_open == "fail"
        )

    def start(self, call: int) -> bool:
        """Take the call, unless the first breaker to let it through wants a probe."""
        for route, lane in enumerate(self._lanes):
            if self._closed[route]:
                self._ride(call, route, lane)
                return True
            if lane.gate.open_until() is None:
                return False
        return False

    def _note(self, route: int, change: Transition) -> None:
        if not change.shadow:
            self._closed[route] = change.to_state is BreakerState.CLOSED

    def _ride(self, call: int, route: int, lane: Lane) -> None:
        rider = _Rider(call, self._loop.time(), route, lane.pacer.join())
        if rider.ticket.granted.done():
            self._send(rider)
            return
        # Woken by its turn or by the breaker, whichever is first.
        stirred = lane.gate.changed()
        stirred.add_done_callback(partial(self._stirred, rider))
        rider.ticket.granted.add_done_callback(lambda _: self._turn(rider, stirred))

    def _stirred(self, rider: _Rider, stirred: asyncio.Future[None]) -> None:
        if not stirred.cancelled():
            self._hand_over(rider)

    def _turn(self, rider: _Rider, stirred: asyncio.Future[None]) -> None:
        if not stirred.done():
            stirred.cancel()
            self._send(rider)

    def _send(self, rider: _Rider) -> None:
        """Let the call meet what it meets."""
        lane, now = self._lanes[rider.route], self._loop.time()
        met = self._world.meet(rider.call, rider.route, now, ())
        if met.reason is not None or met.latency >= lane.timeout:
            self._hand_over(rider)
            return
        permit = lane.gate.admit()
        if isinstance(permit, Rejection):
            self._hand_over(rider)
            return
        permit.begin()
        rider.ticket.spend()
        self._loop.plain_at(now + met.latency, self._served, rider, permit, met, now)

    def _served(self, rider: _Rider, permit: Permit, met: Met, sent_at: float) -> None:
        lane, latency = self._lanes[rider.route], self._loop.time() - sent_at
        self._world.book(rider.call, rider.route, sent_at, latency, None, met)
        lane.latencies.append(latency)
        permit.settle(Verdict.SUCCESS)
        lane.pacer.leave(rider.ticket)
        self._done(rider.call, rider.route)

    def _hand_over(self, rider: _Rider) -> None:
        """Let the ladder go on with the call, with its place unless the breaker is in the way."""
        lane, context = self._lanes[rider.route], None
        if lane.rejects_at(self._loop.time()):
            lane.pacer.leave(rider.ticket)
        elif isinstance(lane.pacer, HandingPacer):
            context = lane.pacer.lend(rider.ticket)
        self._climb(Climber(rider.call, rider.asked, rider.route, context))
