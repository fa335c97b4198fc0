"""The pipeline: the path of a call, stage by stage; each stage adds one thing and calls the next.

::

    deadline( across routes( per route: retry( pace( breaker( attempt timeout( provider ))))))

Read it from top to bottom. The stage across routes is in ``fallback``, and comes back to
``_on_route`` for each route; the attempt is in ``attempt``, and ends in the provider.
Sinks receive events; no stage depends on them.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from resilient_imagen.circuitbreaker import Rejection
from resilient_imagen.errors import (
    CircuitOpenError,
    ImageGenerationError,
    SaturatedError,
)
from resilient_imagen.pipeline.background import BackgroundRequests
from resilient_imagen.pipeline.deadline import CLOCK_TOLERANCE
from resilient_imagen.pipeline.fallback import Fallback
from resilient_imagen.pipeline.hedge import HedgeBudget
from resilient_imagen.pipeline.outcome import AttemptFailure
from resilient_imagen.pipeline.retry import FailedRequest, RetryPolicy
from resilient_imagen.pipeline.several_images import SeveralImages
from resilient_imagen.pipeline.state import RouteState
from resilient_imagen.ratelimit.limiter import QueueFullError
from resilient_imagen.reasons import POLICIES, Reason
from resilient_imagen.telemetry.events import RetryScheduled, ShortCircuited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from resilient_imagen.inflight import CallsInFlight
    from resilient_imagen.pipeline.attempt import AttemptExecutor
    from resilient_imagen.pipeline.deadline import Deadline
    from resilient_imagen.pipeline.outcome import AttemptOutcome, AttemptSuccess
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.state import CallState
    from resilient_imagen.ratelimit.limiter import Slot
    from resilient_imagen.settings import Settings
    from resilient_imagen.snapshots import HedgingSnapshot
    from resilient_imagen.telemetry.dispatcher import SinkDispatcher

__all__ = ["Pipeline"]


class PermitRevokedError(Exception):
    """The breaker revoked the permit of a call that waited in the queue."""


class Pipeline:
    """The stages from a call's deadline to its requests.

    Args:
        settings: The settings of every stage.
        attempts: The last stage.
        dispatcher: Receives the events of every stage.
        random: Chance for jitter, from 0 to 1.
    """

    def __init__(
        self,
        settings: Settings,
        attempts: AttemptExecutor,
        dispatcher: SinkDispatcher,
        random: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._attempts = attempts
        self._dispatcher = dispatcher
        self._retry_policy = RetryPolicy(settings.max_retries, settings.retry_base_delay, random)
        self._max_wait = math.inf if settings.max_wait is None else settings.max_wait
        self._keeps = settings.on_timeout == "keep"
        self.budget: HedgeBudget = HedgeBudget(settings.hedge_budget)
        self.background: BackgroundRequests = BackgroundRequests()
        self._fallback = self._new_fallback()
        self._several_images = SeveralImages(self._fallback.run)

    def _new_fallback(self) -> Fallback:
        """Return the stage across routes."""
        return Fallback(
            self._settings,
            self._dispatcher,
            self._on_route,
            self._new_state,
            self.budget,
            self.background,
        )

    def snapshot(self, now: float) -> HedgingSnapshot:
        """Return the numbers about calls with two requests in flight, as plain JSON."""
        calls, hedged = self.budget.snapshot(now)
        return {
            "calls_last_hour": calls,
            "hedged_last_hour": hedged,
            "budget": self._settings.hedge_budget,
            "in_background": len(self.background),
        }

    # -- deadline ---------------------------------------------------------------------------------

    async def run(
        self, call: CallState, prepare: Callable[[], Awaitable[None]], in_flight: CallsInFlight
    ) -> AttemptSuccess:
        """Serve the call within its deadline: load what it needs, then go across the routes.

        Args:
            call: The call.
            prepare: Loads what it needs.
            in_flight: Counts the call, and may end it early.

        Raises:
            ImageGenerationError: No image; the error says why, with every request sent.
            RuntimeError: The call was ended through ``in_flight``.
        """
        loop = asyncio.get_running_loop()
        self._count(call)
        timer = asyncio.timeout_at(call.deadline.timer_at)
        with in_flight.watch(timer):
            try:
                async with timer:
                    await prepare()
                    served = await self._across_routes(call)
                    return await self._several_images.complete(call, served, timer)
            except TimeoutError:
                if not timer.expired():
                    raise
            finally:
                await call.on_start.finish()
        if not call.deadline.has_passed(loop.time()):
            raise RuntimeError("the ImageClient was closed during the call")
        raise call.deadline_error()

    def _count(self, call: CallState) -> None:
        """Count the call for the budget of hedges."""
        self.budget.count_call(call.started)

    # -- across routes ----------------------------------------------------------------------------

    async def _across_routes(self, call: CallState) -> AttemptSuccess:
        """Ask the routes in order, and once more if the call may wait for an open circuit."""
        while True:
            try:
                return await self._fallback.run(call)
            except CircuitOpenError:
                if self._settings.when_all_open == "fail" or not await self._wait_for_half_open(
                    call
                ):
                    raise
                call.route_errors.clear()
                call.fallback_cause = None  # the first route is asked again

    async def _wait_for_half_open(self, call: CallState) -> bool:
        """Wait until a route that rejected the call lets a probe through.

        Routes that were not asked do not count: IMAGE_GEN_FALLBACK_ON keeps the call from them.

        Returns:
            False if no route will do so within the deadline.
        """
        loop = asyncio.get_running_loop()
        asked = [call.routes[index].breaker for index in call.route_errors]
        while not any(breaker.allows_calls() for breaker in asked):
            due = min(breaker.blocked_until() or 0.0 for breaker in asked)
            if due >= call.deadline.at or math.isinf(due):
                return False
            if call.progress is not None:
                call.progress.report(
                    "queued",
                    call.routes[next(iter(call.route_errors))],
                    wait_s=max(0.0, due - loop.time()),
                    reason=Reason.CIRCUIT_OPEN,
                )
            await _first_of(
                *(breaker.wait_for_change() for breaker in asked), timeout=due - loop.time()
            )
        await asyncio.sleep(0)  # the deadline and a cancellation get through in every round
        return True

    # -- per route: retry -------------------------------------------------------------------------

    def _new_state(self, call: CallState, index: int) -> RouteState:
        """Return the state of a call that starts on the route with this index."""
        route, policy = call.routes[index], self._retry_policy
        return RouteState(
            route=route,
            index=index,
            later_routes=call.routes[index + 1 :],
            max_attempts=policy.max_attempts(is_first_route=index == 0),
            max_server_wait=policy.max_server_wait(route.timeout, is_first_route=index == 0),
            call=call,
        )

    async def _on_route(self, call: CallState, state: RouteState) -> AttemptSuccess:
        """Ask one route, if its breaker allows it, with what its model takes of the request."""
        route = state.route
        await self._acquire_early(call, state)
        try:
            await call.set_up(route)
            with call.spending("making reference images smaller"):
                state.adapted = await route.adapt_request(call.request)
            return await self._with_retries(call, state)
        except (CircuitOpenError, SaturatedError):
            if state.last_error is None:
                raise
        finally:
            state.drop_permit()
        raise state.last_error  # a failed request says more than the rejection of its retry

    async def _with_retries(self, call: CallState, state: RouteState) -> AttemptSuccess:
        """Send requests until one succeeds or the retry policy gives the route up."""
        while True:
            try:
                outcome = await self._with_limiter(call, state)
            except PermitRevokedError:
                await self._acquire_early(call, state)
                continue
            if not isinstance(outcome, AttemptFailure):
                return outcome
            state.last_error = error = outcome.error
            delay = self._decide_retry(state, error)
            self._dispatcher.emit(outcome.event(retry_in=delay))
            if delay is None:
                raise error
            self._dispatcher.emit(
                RetryScheduled(
                    call_id=call.id,
                    sent=outcome.sent,
                    reason=error.reason,
                    delay_s=delay,
                    hinted=error.retry_after is not None,
                )
            )
            call.report("retrying", state.route, wait_s=delay, reason=error.reason)
            await self._back_off(call, state, delay)

    def _decide_retry(self, state: RouteState, error: ImageGenerationError) -> float | None:
        """Return the seconds until the route is asked again, or None to leave it."""
        if state.successor_started or (error.reason is Reason.TIMEOUT and self._keeps):
            return None
        now = asyncio.get_running_loop().time()
        # Taken once: an operator may change a breaker from another thread meanwhile.
        alternative = state.alternative if self._settings.falls_back_on(error.reason) else None
        resolution = state.adapted.request.resolution
        usual = None if alternative is None else alternative.usual_latency(resolution)
        delay = self._retry_policy.decide(
            FailedRequest(
                retry=POLICIES[error.reason].retry,
                hint=error.retry_after,
                attempt_number=state.attempt_number,
                max_attempts=state.max_attempts,
                sent_at=state.sent_at,
                failed_at=now,
                queue_s=state.queue_s,
                first_failure_at=state.first_failure_at,
                has_alternative=alternative is not None,
                alternative_latency=usual,
                max_server_wait=state.max_server_wait,
                deadline=state.deadline,
                queue_wait=state.retry_queue_wait,
                latency=state.measured_latency,
                blocked_until=state.route.breaker.blocked_until(),
            )
        )
        if error.retry_after is None and state.first_failure_at is None:
            state.first_failure_at = now
        return delay

    async def _back_off(self, call: CallState, state: RouteState, delay: float) -> None:
        """Sleep without a slot or permit; wake at once when the breaker makes the wait useless."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        wake = started + delay
        try:
            while loop.time() < wake and not state.route.rejects_at(wake):
                await _first_of(state.route.breaker.wait_for_change(), timeout=wake - loop.time())
        finally:
            call.backoff_s += loop.time() - started
        await self._acquire_early(call, state)

    # -- pace -------------------------------------------------------------------------------------

    async def _with_limiter(self, call: CallState, state: RouteState) -> AttemptOutcome:
        """Queue for a slot and hold it during one request, if there is time for both."""
        loop = asyncio.get_running_loop()
        limiter = state.route.limiter
        joined = loop.time()
        if state.last_error is None:  # the route gets a share of what is left by now
            state.deadline = self._share(call, state)
        latency = state.measured_latency
        wait = limiter.shortest_wait(latency)
        # A caller that need not wait is sent, however little time is left.
        waits = wait > CLOCK_TOLERANCE
        if wait - self.max_wait(state.later_routes) > CLOCK_TOLERANCE:
            raise _saturated(state.route, wait)
        if not state.deadline.is_worth_starting(joined + wait, latency if waits else None):
            if waits or state.last_error is not None:
                raise _saturated(state.route, wait)
            raise call.deadline_error()
        try:
            slot = limiter.join(state.deadline.latest_start(latency))
        except QueueFullError:
            raise _saturated(state.route, wait) from None
        with slot:
            try:
                if slot.waited:
                    if call.progress is not None:
                        place = limiter.snapshot()["waiting"]
                        call.progress.report("queued", state.route, position=place, wait_s=wait)
                    await self._wait_in_queue(state, slot, joined)
            finally:
                state.queue_s = loop.time() - joined
                call.queue_s += state.queue_s
            outcome = await self._with_breaker(call, state, slot)
        if isinstance(outcome, AttemptFailure):  # its own slot is free by now
            state.retry_queue_wait = limiter.shortest_wait(state.measured_latency)
        return outcome

    def max_wait(self, later_routes: Sequence[Route]) -> float:
        """Return the seconds in a queue after which the call goes to a later route.

        They are infinite if no later route lets calls through now.
        """
        if self._max_wait == math.inf or not self._settings.falls_back_on(Reason.SATURATED):
            return math.inf
        usable = any(route.breaker.allows_calls() for route in later_routes)
        return self._max_wait if usable else math.inf

    def _share(self, call: CallState, state: RouteState) -> Deadline:
        """Return when the call must be done with this route."""
        return self.route_deadline(call.deadline, state.later_routes)

    def route_deadline(self, deadline: Deadline, later_routes: Sequence[Route]) -> Deadline:
        """Return when a route must be done, so that a later one still has a chance."""
        if not self._settings.falls_back_on(Reason.TIMEOUT):
            return deadline
        return deadline.share(asyncio.get_running_loop().time(), later_routes)

    async def _wait_in_queue(self, state: RouteState, slot: Slot, joined: float) -> None:
        """Wait for the turn; leave when the time is needed elsewhere or the breaker opens."""
        loop = asyncio.get_running_loop()
        breaker = state.route.breaker
        while not slot.granted.done():
            if state.permit is None and state.route.rejects_at(loop.time()):
                raise PermitRevokedError  # wait for the probe's outcome outside the queue
            leaves_at = min(slot.useful_until, joined + self.max_wait(state.later_routes))
            left = leaves_at - loop.time()
            if left <= 0:
                raise _saturated(state.route, state.route.limiter.shortest_wait())
            await _first_of(breaker.wait_for_change(), keep=slot.granted, timeout=left)
            # Not before: a probe's permit is stale until other processes have agreed to it.
            state.drop_permit(only_if_stale=True)
        if loop.time() > slot.useful_until:
            raise _saturated(state.route, state.route.limiter.shortest_wait())

    # -- breaker ----------------------------------------------------------------------------------

    async def _with_breaker(self, call: CallState, state: RouteState, slot: Slot) -> AttemptOutcome:
        """Send one request with a permit, the one acquired early or a new one; settle it once."""
        state.drop_permit(only_if_stale=True)
        if state.permit is None:
            answer = state.route.breaker.acquire()
            if isinstance(answer, Rejection):
                raise PermitRevokedError
            state.permit = answer
        try:
            return await self._attempts.run(call, state, slot, state.permit)
        finally:
            state.drop_permit()

    async def _acquire_early(self, call: CallState, state: RouteState) -> None:
        """Ask the breaker before queueing: an open route is skipped in microseconds."""
        breaker = state.route.breaker
        while isinstance(answer := breaker.try_acquire_early(), Rejection):
            may_leave = self._settings.falls_back_on(Reason.CIRCUIT_OPEN)
            if not answer.probing or (may_leave and state.alternative is not None):
                raise self._circuit_open_error(call, state, answer)
            # The last usable route, and only a probe in flight: its outcome is worth waiting for,
            # unless a later route may be asked before.
            others = [route.breaker for route in state.later_routes] if may_leave else []
            until = min((other.blocked_until() or 0.0 for other in others), default=math.inf)
            wait = until - asyncio.get_running_loop().time()
            if answer.retry_after is not None:
                wait = min(wait, answer.retry_after)
            if call.progress is not None:
                call.progress.report(
                    "queued",
                    state.route,
                    wait_s=None if math.isinf(wait) else max(0.0, wait),
                    reason=Reason.CIRCUIT_OPEN,
                )
            await _first_of(*(each.wait_for_change() for each in (breaker, *others)), timeout=wait)
        state.permit = answer

    def _circuit_open_error(
        self, call: CallState, state: RouteState, rejection: Rejection
    ) -> CircuitOpenError:
        provider, model = state.route.provider.name, state.route.model
        call.short_circuits += 1
        self._dispatcher.emit(
            ShortCircuited(call_id=call.id, provider=provider, model=model, rejection=rejection)
        )
        what = (
            f"skipped after {rejection.summary}" if rejection.summary else "skipped by the operator"
        )
        return CircuitOpenError(
            f"{provider} {model}: {what}",
            provider=provider,
            model=model,
            retry_after=rejection.retry_after,
        )


def _saturated(route: Route, wait: float) -> SaturatedError:
    return SaturatedError(provider=route.provider.name, model=route.model, retry_after=wait or None)


async def _first_of(
    *passing: asyncio.Future[None],
    timeout: float | None,  # noqa: ASYNC109 - this is the one place that turns it into waiting
    keep: asyncio.Future[None] | None = None,
) -> None:
    """Wait until any of the futures is done or ``timeout`` seconds are over.

    The passing ones are given back afterwards; ``keep`` stays as it is.
    """
    try:
        await asyncio.wait(
            {*passing, keep} if keep is not None else set(passing),
            timeout=None if timeout is None or math.isinf(timeout) else max(0.0, timeout),
            return_when=asyncio.FIRST_COMPLETED,
        )
    finally:
        for future in passing:
            future.cancel()
