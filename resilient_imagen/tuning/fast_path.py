"""Fast path for calls without problems, which are nearly all calls of a simulation.

A call that succeeds on its first attempt changes only the state of the queue and the breaker. Here
such a call joins the same queue and acquires its permit from the same breaker, without the stages
in between. Its outcome is known when it gets its slot. If it is anything else than an image before
another request of the call could start beside it, or if the breaker changes while it is queued, or
the time on the route or in the queue is up, the call is handed to the pipeline, with its place in
the queue and its deadline, as if it had started there. A run with the fast path equals a run
without it, except for the order of calls at the same instant (tests/tuning/test_fast_path.py).
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
    from resilient_imagen.pipeline.hedge import OverlapPolicy
    from resilient_imagen.pipeline.pipeline import Pipeline
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.ratelimit.limiter import Slot
    from resilient_imagen.tuning.loop import LeanLoop
    from resilient_imagen.tuning.outcome_model import SimulatedOutcome
    from resilient_imagen.tuning.simulation_run import SimulationRun

__all__ = ["Climber", "Express", "HandingRateLimiter"]

_handed: ContextVar[list[Slot]] = ContextVar("handed")
"""The queued slot of a call that is handed to the pipeline, until the pipeline takes it."""


class HandingRateLimiter(RateLimiter):
    """A rate limiter that a call can join with a slot that it already has there."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self._lent: set[Slot] = set()

    def join(self, useful_until: float = math.inf) -> Slot:
        """Join the end of the queue, or return the slot that the call already has.

        Args:
            useful_until: As in `RateLimiter.join`; ignored for a call with a slot.

        Raises:
            QueueFullError: The queue is full.
        """
        brought = _handed.get(None)
        if brought and brought[0] in self._lent:
            self._lent.discard(brought[0])
            return brought.pop()
        return super().join(useful_until)

    def shortest_wait(self, latency: float | None = None) -> float:
        """Return `RateLimiter.shortest_wait`; minus infinity for a call that already has a slot."""
        brought = _handed.get(None)
        if brought and brought[0] in self._lent:
            return -math.inf
        return super().shortest_wait(latency)

    def lend(self, ticket: Slot) -> Context:
        """Return a context in which the next `join` returns this slot."""
        self._lent.add(ticket)
        context = copy_context()
        context.run(_handed.set, [ticket])
        return context


class Climber(NamedTuple):
    """A call that the pipeline continues."""

    call: int
    asked: float
    """Loop time of its start."""
    route: int
    """Index of its present route; earlier routes have rejected it."""
    until: Deadline | None = None
    """The deadline for this route, if it is computed already."""
    ticket: Slot | None = None
    """A slot that the call cannot use any more; it is released when the call continues."""
    queued: Slot | None = None
    """A slot that the call goes on with, in this context."""
    context: Context | None = None


class _Rider(NamedTuple):
    """A call on the fast path."""

    call: int
    asked: float
    route: int
    ticket: Slot
    until: Deadline


class Express:
    """The fast path.

    Args:
        loop: The event loop.
        routes: The routes; their limiters are `HandingRateLimiter`.
        seconds: The deadline of a call in seconds.
        resolution: The resolution of all images.
        pipeline: Computes the time for a route and in its queue.
        overlap: Knows when a second request of a call may start.
        world: Returns the outcomes of requests, and records the requests.
        climb: Continues a call on the pipeline.
        done: Called with a call and the route that served it.
    """

    def __init__(
        self,
        loop: LeanLoop,
        routes: Sequence[Route],
        seconds: float,
        resolution: str,
        pipeline: Pipeline,
        overlap: OverlapPolicy,
        world: SimulationRun,
        climb: Callable[[Climber], None],
        done: Callable[[int, int], None],
    ) -> None:
        self._loop = loop
        self._routes = routes
        self._seconds = seconds
        self._resolution = resolution
        self._pipeline = pipeline
        self._overlap = overlap
        self._world = world
        self._climb = climb
        self._done = done
        self._closed = [route.breaker.metrics().state is BreakerState.CLOSED for route in routes]
        for position, route in enumerate(routes):
            route.breaker.subscribe(partial(self._note, position), inline=True)

    def start(self, call: int) -> bool:
        """Accept the call if the first available route's breaker is closed and its queue is short.

        Return whether it was accepted.
        """
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
        later = self._routes[position + 1 :]
        until = self._pipeline.route_deadline(Deadline.after(self._seconds, now), later)
        latency = route.measured_latency(self._resolution)
        useful_until = until.latest_start(latency)
        wait = route.limiter.shortest_wait(latency)
        waits = wait > CLOCK_TOLERANCE
        max_wait = self._pipeline.max_wait(later)
        if wait - max_wait > CLOCK_TOLERANCE:
            return False
        if not until.is_worth_starting(now + wait, latency if waits else None):
            return False
        try:
            rider = _Rider(call, now, position, route.limiter.join(useful_until), until)
        except QueueFullError:
            return False
        if rider.ticket.granted.done():
            self._send(rider)
            return True
        # It continues with its slot, a change of the breaker or the time limit, whichever is first.
        stirred = route.breaker.wait_for_change()
        stirred.add_done_callback(partial(self._stirred, rider))
        rider.ticket.granted.add_done_callback(lambda _: self._turn(rider, stirred))
        leaves_at = min(useful_until, now + max_wait)
        if leaves_at < math.inf:
            self._loop.plain_at(max(now, leaves_at), self._too_late, rider, stirred)
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
        """Send the request if it succeeds in time; otherwise hand the call to the pipeline."""
        route, now = self._routes[rider.route], self._loop.time()
        met = self._world.outcome_for(rider.call, rider.route, now, ())
        limit = min(now + route.timeout, rider.until.at)
        slow = self._overlap.slow_delay(route, self._resolution)
        if slow is not None and rider.route + 1 < len(self._routes):
            limit = min(limit, now + slow)
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
        """Hand the call to the pipeline, with its slot if it can still use it."""
        route, now = self._routes[rider.route], self._loop.time()
        climber = Climber(rider.call, rider.asked, rider.route)
        deadline = Deadline.after(self._seconds, rider.asked)
        if not deadline.is_worth_starting(now) or route.rejects_at(now):
            climber = climber._replace(ticket=rider.ticket)
        elif isinstance(route.limiter, HandingRateLimiter):
            context = route.limiter.lend(rider.ticket)
            climber = climber._replace(until=rider.until, queued=rider.ticket, context=context)
        self._climb(climber)
