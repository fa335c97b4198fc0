"""A short cut for calls that meet no trouble, which is nearly all of them.

A call that a route serves at once passes the pipeline without leaving a trace but in the queue and
in
the breaker. Here such a call joins the same queue and takes its permit from the same breaker, and
the stages between are left out. What it meets is known when its turn comes: as soon as that is
anything but an image in time, the breaker stirs while it queues or its time for the route is up, it
is handed to the pipeline, with its place in the queue and the time it has, as if it had come that
way
from the start. Nothing is guessed: a run with the short cut equals one without it, but for who is
first of several at the very same instant (tests/test_tuning_fast_path.py).
"""

from __future__ import annotations

import math
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from resilient_imagen.circuitbreaker import BreakerState, Rejection
from resilient_imagen.pipeline.deadline import CLOCK_TOLERANCE, Deadline
from resilient_imagen.ratelimit.limiter import QueueFullError, RateLimiter
from resilient_imagen.reasons import BreakerOutcome

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from contextvars import Context

    from resilient_imagen.circuitbreaker import Permit, Transition
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.ratelimit.limiter import Slot
    from resilient_imagen.tuning.loop import LeanLoop
    from resilient_imagen.tuning.outcome_model import SimulatedOutcome
    from resilient_imagen.tuning.simulation_run import SimulationRun

__all__ = ["Climber", "Express", "HandingRateLimiter"]

_handed: ContextVar[list[Slot]] = ContextVar("handed")
"""The place in the queue that a call brings along, until it is taken."""


class HandingRateLimiter(RateLimiter):
    """A queue that a call may enter with the place it holds there already."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self._lent: set[Slot] = set()

    def join(self, useful_until: float = math.inf) -> Slot:
        """Stand at the end of the queue, or where the caller stands already.

        Args:
            useful_until: As the queue has it; a caller that stands there already has its own.

        Raises:
            QueueFullError: As the queue says.
        """
        brought = _handed.get(None)
        if brought and brought[0] in self._lent:
            self._lent.discard(brought[0])
            return brought.pop()
        return super().join(useful_until)

    def shortest_wait(self, latency: float | None = None) -> float:
        """As the queue says; who has a place already is never too late for one."""
        brought = _handed.get(None)
        if brought and brought[0] in self._lent:
            return -math.inf
        return super().shortest_wait(latency)

    def lend(self, ticket: Slot) -> Context:
        """A context in which the next to join takes over this place."""
        self._lent.add(ticket)
        context = copy_context()
        context.run(_handed.set, [ticket])
        return context


class Climber(NamedTuple):
    """A call that goes on by the pipeline."""

    call: int
    asked: float
    """When it came."""
    route: int
    """Routes before this one have turned it away already."""
    until: Deadline | None = None
    """When this route must be done, if that was settled before."""
    ticket: Slot | None = None
    """A place in the queue that is of no use any more; to be given up when the call goes on."""
    context: Context | None = None


class _Rider(NamedTuple):
    """A call on the short cut."""

    call: int
    asked: float
    route: int
    ticket: Slot
    until: Deadline


class Express:
    """The short cut.

    Args:
        loop: Whose time it is.
        routes: The routes; their queues are `HandingRateLimiter`.
        seconds: That a call may take in all.
        resolution: Of every picture that is asked for.
        share: Returns when a route must be done, as the pipeline computes it.
        world: Says what requests meet, and notes what was sent.
        climb: Starts a call on the pipeline.
        done: Told the call and the route that served it.
    """

    def __init__(
        self,
        loop: LeanLoop,
        routes: Sequence[Route],
        seconds: float,
        resolution: str,
        share: Callable[[Deadline, Sequence[Route]], Deadline],
        world: SimulationRun,
        climb: Callable[[Climber], None],
        done: Callable[[int, int], None],
    ) -> None:
        self._loop = loop
        self._routes = routes
        self._seconds = seconds
        self._resolution = resolution
        self._share = share
        self._world = world
        self._climb = climb
        self._done = done
        self._closed = [route.breaker.metrics().state is BreakerState.CLOSED for route in routes]
        for position, route in enumerate(routes):
            route.breaker.subscribe(partial(self._note, position), inline=True)

    def start(self, call: int) -> bool:
        """Take the call, if the first breaker to let it through wants no probe and it may queue."""
        for position, route in enumerate(self._routes):
            if self._closed[position]:
                return self._ride(call, position, route)
            if route.breaker.blocked_until() is None:
                return False
        return False

    def _note(self, position: int, change: Transition) -> None:
        if not change.shadow:
            self._closed[position] = change.to_state is BreakerState.CLOSED

    def _ride(self, call: int, position: int, route: Route) -> bool:
        now = self._loop.time()
        until = self._share(Deadline.after(self._seconds, now), self._routes[position + 1 :])
        latency = route.measured_latency(self._resolution)
        useful_until = until.latest_start(latency)
        wait = route.limiter.shortest_wait(latency)
        waits = wait > CLOCK_TOLERANCE
        if not until.is_worth_starting(now + wait, latency if waits else None):
            return False
        try:
            rider = _Rider(call, now, position, route.limiter.join(useful_until), until)
        except QueueFullError:
            return False
        if rider.ticket.granted.done():
            self._send(rider)
            return True
        # Woken by its turn, by the breaker or by the clock, whichever is first.
        stirred = route.breaker.wait_for_change()
        stirred.add_done_callback(partial(self._stirred, rider))
        rider.ticket.granted.add_done_callback(lambda _: self._turn(rider, stirred))
        if useful_until < math.inf:
            self._loop.plain_at(max(now, useful_until), self._too_late, rider, stirred)
        return True

    def _stirred(self, rider: _Rider, stirred: asyncio.Future[None]) -> None:
        if not stirred.cancelled():
            self._hand_over(rider)

    def _too_late(self, rider: _Rider, stirred: asyncio.Future[None]) -> None:
        if not stirred.done():
            stirred.cancel()
            self._hand_over(rider)

    def _turn(self, rider: _Rider, stirred: asyncio.Future[None]) -> None:
        if not stirred.done():
            stirred.cancel()
            self._send(rider)

    def _send(self, rider: _Rider) -> None:
        """Let the call meet what it meets."""
        route, now = self._routes[rider.route], self._loop.time()
        met = self._world.outcome_for(rider.call, rider.route, now, ())
        limit = min(now + route.timeout, rider.until.at)
        if met.reason is not None or now + met.latency >= limit:
            self._hand_over(rider)
            return
        permit = route.breaker.acquire()
        if isinstance(permit, Rejection):
            self._hand_over(rider)
            return
        permit.begin()
        rider.ticket.consume()
        self._loop.plain_at(now + met.latency, self._served, rider, permit, met, now)

    def _served(self, rider: _Rider, permit: Permit, met: SimulatedOutcome, sent_at: float) -> None:
        route, latency = self._routes[rider.route], self._loop.time() - sent_at
        self._world.record(rider.call, rider.route, sent_at, latency, None, met)
        route.record_success(self._resolution, latency)
        permit.settle(BreakerOutcome.SUCCESS)
        route.limiter.release(rider.ticket)
        self._done(rider.call, rider.route)

    def _hand_over(self, rider: _Rider) -> None:
        """Let the pipeline go on with the call, with its place if that is of any use."""
        route, now = self._routes[rider.route], self._loop.time()
        climber = Climber(rider.call, rider.asked, rider.route)
        deadline = Deadline.after(self._seconds, rider.asked)
        if not deadline.is_worth_starting(now) or route.rejects_at(now):
            climber = climber._replace(ticket=rider.ticket)
        elif isinstance(route.limiter, HandingRateLimiter):
            climber = climber._replace(until=rider.until, context=route.limiter.lend(rider.ticket))
        self._climb(climber)
