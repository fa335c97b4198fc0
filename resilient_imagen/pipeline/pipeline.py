"""The pipeline: the path of a call, stage by stage; each stage adds one thing and calls the next.

::

    deadline( across routes( per route: retry( pace( breaker( attempt timeout( provider ))))))

Read it from top to bottom. The stage across routes is in ``fallback``, and comes back to
``_on_step`` for each step of the chain; most steps have one route, and ``step`` has the choice
between the accounts of the others. The attempt is in ``attempt``, and ends in the provider.
Sinks receive events; no stage depends on them.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Final

from resilient_imagen.circuitbreaker import Rejection
from resilient_imagen.errors import (
    CircuitOpenError,
    ImageGenerationError,
    SaturatedError,
)
from resilient_imagen.pipeline.account_queues import AccountQueues
from resilient_imagen.pipeline.background import BackgroundRequests
from resilient_imagen.pipeline.deadline import CLOCK_TOLERANCE
from resilient_imagen.pipeline.fallback import Fallback
from resilient_imagen.pipeline.hedge import HedgeBudget
from resilient_imagen.pipeline.outcome import AttemptFailure
from resilient_imagen.pipeline.retry import FailedRequest, RetryPolicy
from resilient_imagen.pipeline.route_state import RouteState
from resilient_imagen.pipeline.several_images import SeveralImages
from resilient_imagen.pipeline.step import AccountChangedError, StepState
from resilient_imagen.ratelimit.limiter import QueueFullError
from resilient_imagen.reasons import POLICIES, BreakerOutcome, Reason
from resilient_imagen.telemetry.events import AccountChanged, RetryScheduled, ShortCircuited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from resilient_imagen.inflight import CallsInFlight
    from resilient_imagen.pipeline.attempt import AttemptExecutor
    from resilient_imagen.pipeline.call_state import CallState
    from resilient_imagen.pipeline.deadline import Deadline
    from resilient_imagen.pipeline.outcome import AttemptOutcome, AttemptSuccess
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.ratelimit.limiter import Slot
    from resilient_imagen.settings import Settings
    from resilient_imagen.snapshots import HedgingSnapshot
    from resilient_imagen.telemetry.dispatcher import SinkDispatcher

__all__ = ["Pipeline"]


_REJECTIONS: Final = frozenset({Reason.CIRCUIT_OPEN, Reason.SATURATED})
"""Reasons for which a route sends nothing."""


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
        self._fallback = Fallback(
            settings, dispatcher, self._on_step, self._next_state, self.budget, self.background
        )
        self._several_images = SeveralImages(self._fallback.run)

    def reconfigure(self, settings: Settings) -> None:
        """Use the share of hedged calls and the delays of other settings; nothing else changes."""
        self.budget.share = settings.hedge_budget
        self._attempts.reconfigure(settings)

    def snapshot(self, now: float) -> HedgingSnapshot:
        """Return the numbers about calls with two requests in flight, as plain JSON."""
        calls, hedged = self.budget.snapshot(now)
        return {
            "calls_last_hour": calls,
            "hedged_last_hour": hedged,
            "budget": self.budget.share,
            "in_background": len(self.background),
        }

    # -- deadline ---------------------------------------------------------------------------------

    async def run(
        self,
        call: CallState,
        prepare: Callable[[], Awaitable[None]] | None,
        in_flight: CallsInFlight,
    ) -> AttemptSuccess:
        """Serve the call within its deadline: load what it needs, then go across the routes.

        Args:
            call: The call.
            prepare: Loads what it needs; None if that is nothing.
            in_flight: Counts the call, and may end it early.

        Raises:
            ImageGenerationError: No image; the error says why, with every request sent.
            RuntimeError: The call was ended through ``in_flight``.
        """
        loop = call.loop
        self.budget.count_call(call.started)
        timer = asyncio.timeout_at(call.deadline.timer_at)
        in_flight.enter(timer, loop)
        try:
            async with timer:
                if prepare is not None:
                    await prepare()
                served = await self._across_routes(call)
                if call.request.n is None:
                    return served
                return await self._several_images.complete(call, served, timer)
        except TimeoutError:
            if not timer.expired():
                raise
        finally:
            try:
                if call.on_start is not None:
                    await call.on_start.finish()
            finally:
                in_flight.leave(timer)
        if not call.deadline.has_passed(loop.time()):
            raise RuntimeError("the ImageClient was closed during the call")
        raise call.deadline_error()

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
                call.fallback_cause = None  # the first route gets the next request

    async def _wait_for_half_open(self, call: CallState) -> bool:
        """Wait until a route that rejected the call lets a probe through.

        Only routes that rejected the call count: IMAGE_GEN_FALLBACK_ON excludes the others.

        Returns:
            False if no route will do so within the deadline.
        """
        loop = call.loop
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
            changes = [breaker.wait_for_change() for breaker in asked]
            with call.waiting_for_breaker():
                await _first_of(*changes, timeout=due - loop.time())
        await asyncio.sleep(0)  # the deadline and a cancellation get through in every round
        return True

    # -- per step: the account ------------------------------------------------------------------

    def _next_state(self, call: CallState, route: Route) -> RouteState:
        """Return the state of a call that continues with a route of the latest or the next step."""
        step = call.step
        if step is None or route not in step.routes:
            index = 0 if step is None else step.index + 1
            step = call.step = StepState(
                index=index,
                routes=call.steps[index],
                later_routes=tuple(chain.from_iterable(call.steps[index + 1 :])),
                max_attempts=self._retry_policy.max_attempts(is_first_route=index == 0),
            )
        state = RouteState(
            step=step,
            route=route,
            deadline=call.deadline,
            note_change=call.note_change,
        )
        step.running.append(state)
        return state

    async def _on_step(self, call: CallState, state: RouteState) -> AttemptSuccess:
        """Use the account of the step that can send soonest; after failures, use the others."""
        try:
            if state.step.has_accounts:
                self._choose_account(call, state)
            while True:
                try:
                    return await self._on_route(call, state)
                except AccountChangedError:
                    continue
                except (CircuitOpenError, SaturatedError) as rejection:
                    if self._go_on_after(call, state, rejection):
                        continue
                    if state.last_error is None or state.failed_route is None:
                        raise
                    if state.failed_route is not state.route:
                        call.note_rejection(state.route, rejection)
                    break
                except ImageGenerationError as error:
                    if not self._go_on_after(call, state, error):
                        raise
        finally:
            state.step.running.remove(state)
        state.route = state.failed_route
        raise state.last_error  # a failed request says more than the rejection of its retry

    def _choose_account(self, call: CallState, state: RouteState) -> None:
        """Take the account that can send soonest; others are skipped if their circuit is open."""
        step = state.step
        routes = step.not_left_by(state)
        if any(route.breaker.allows_calls() for route in routes):
            routes = [route for route in routes if not self._skips(call, step, route)]
        best = step.best_of(routes, call.request.resolution) or state.route
        if state.route in step.left:
            cause = Reason.CIRCUIT_OPEN
        else:
            cause = Reason.SATURATED if state.last_error is None else state.last_error.reason
        self._change_account(call, state, best, cause)

    def _skips(self, call: CallState, step: StepState, route: Route) -> bool:
        """Return whether an account's breaker rejects the call, and record it."""
        answer = None if route.breaker.allows_calls() else route.breaker.try_acquire_early()
        if not isinstance(answer, Rejection):
            if answer is not None:  # it became usable meanwhile
                answer.settle(BreakerOutcome.NEUTRAL)
            return False
        error = self._circuit_open_error(call, route, answer)
        call.note_rejection(route, error)
        step.left[route] = Reason.CIRCUIT_OPEN
        return True

    def _go_on_after(self, call: CallState, state: RouteState, error: ImageGenerationError) -> bool:
        """Continue with another account of the step after an error, if there is one."""
        route = self._next_account(call, state, error.reason)
        state.step.left[state.route] = error.reason
        if route is None:
            return False
        if isinstance(error, CircuitOpenError | SaturatedError):
            call.note_rejection(state.route, error)
        else:
            call.note_error(state.route, error)
        self._change_account(call, state, route, error.reason)
        return True

    def _next_account(self, call: CallState, state: RouteState, reason: Reason) -> Route | None:
        """Return the account of the step that gets a request at once after an error, or None.

        After a failed request each other account is tried once, without a back-off. A rejection
        cost nothing, so that every account may follow it that has not failed since a back-off.
        """
        step = state.step
        if not step.has_accounts or state.successor_started:
            return None
        if not self._settings.falls_back_on(reason):
            return None
        resolution = call.request.resolution
        if reason in _REJECTIONS:
            others = [route for route in step.not_left_by(state) if route is not state.route]
            return step.best_of(others, resolution)
        now = call.loop.time()
        return step.best_of(step.untried(now), resolution)

    def _change_account(
        self, call: CallState, state: RouteState, route: Route, cause: Reason
    ) -> None:
        """Go on with an account of the step, and record why it is another one."""
        if route is state.route:
            return
        self._dispatcher.emit(
            AccountChanged(
                call_id=call.id, from_route=state.route.name, to_route=route.name, cause=cause
            )
        )
        state.route = route
        state.step.left.pop(route, None)

    # -- per route: retry -------------------------------------------------------------------------

    async def _on_route(self, call: CallState, state: RouteState) -> AttemptSuccess:
        """Ask one route, if its breaker allows it, with what its model takes of the request."""
        route = state.route
        try:
            await self._acquire_early(call, state)
            if route.warms_up:
                await call.set_up(route)
            if call.request.references:
                with call.spending("making reference images smaller"):
                    state.adapted = await route.adapt_request(call.request)
            else:
                state.adapted = route.adapt_options(call.request)
            return await self._with_retries(call, state)
        finally:
            state.drop_permit()

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
            error = outcome.error
            state.note_failure(error)
            delay = self._decide_retry(call, state, error)
            if delay is None:
                self._dispatcher.emit(outcome.event)
                raise error
            self._dispatcher.emit(replace(outcome.event, retry_in=delay))
            self._dispatcher.emit(
                RetryScheduled(
                    call_id=call.id,
                    sent=outcome.event.sent,
                    reason=error.reason,
                    delay_s=delay,
                    hinted=error.retry_after is not None,
                )
            )
            call.report("retrying", state.route, wait_s=delay, reason=error.reason)
            await self._back_off(call, state, delay)

    def _decide_retry(
        self, call: CallState, state: RouteState, error: ImageGenerationError
    ) -> float | None:
        """Return the seconds until the route gets another request, or None to leave it."""
        if state.successor_started:
            return None
        if state.step.attempt_number >= state.step.max_attempts:
            return None  # before the estimates that the policy needs
        if error.reason is Reason.TIMEOUT and self._keeps:
            return None
        if self._next_account(call, state, error.reason) is not None:
            return None
        now = call.loop.time()
        resolution = state.adapted.request.resolution
        # Taken once: an operator may change a breaker from another thread meanwhile.
        leads_on = self._settings.falls_back_on(error.reason)
        alternative = _first_usable(state.later_routes) if leads_on else None
        route, hint = state.route, error.retry_after
        if state.step.has_accounts:
            route, hint = state.step.first_ready(state, now, resolution)
        latency = route.measured_latency(resolution)
        usual = None if alternative is None else alternative.usual_latency(resolution)
        delay = self._retry_policy.decide(
            FailedRequest(
                retry=POLICIES[error.reason].retry,
                hint=hint,
                attempt_number=state.step.attempt_number,
                max_attempts=state.step.max_attempts,
                sent_at=state.sent_at,
                failed_at=now,
                queue_s=state.queue_s,
                first_failure_at=state.first_failure_at,
                has_alternative=alternative is not None,
                alternative_latency=usual,
                max_server_wait=self._retry_policy.max_server_wait(
                    state.time_limit if route is state.route else route.timeout,
                    is_first_route=state.step.index == 0,
                ),
                deadline=state.deadline,
                queue_wait=route.limiter.shortest_wait(latency),
                latency=latency,
                blocked_until=route.breaker.blocked_until(),
            )
        )
        if error.retry_after is None and state.first_failure_at is None:
            state.first_failure_at = now
        return delay

    async def _back_off(self, call: CallState, state: RouteState, delay: float) -> None:
        """Sleep without a slot or permit; wake at once when the breaker makes the wait useless."""
        loop = call.loop
        started = loop.time()
        wake = started + delay
        routes = state.step.available_to(state)
        try:
            while loop.time() < wake and not all(route.rejects_at(wake) for route in routes):
                changes = [route.breaker.wait_for_change() for route in routes]
                await _first_of(*changes, timeout=wake - loop.time())
        finally:
            call.backoff_s += loop.time() - started
        if state.step.has_accounts:
            state.step.left.clear()
            self._choose_account(call, state)
            raise AccountChangedError
        await self._acquire_early(call, state)

    # -- pace -------------------------------------------------------------------------------------

    async def _with_limiter(self, call: CallState, state: RouteState) -> AttemptOutcome:
        """Hold a slot during one request; if none is free, queue for it while there is time."""
        loop = call.loop
        limiter = state.route.limiter
        joined = loop.time()
        if state.step.has_accounts and (sooner := state.sooner_account()) is not None:
            # Others have queued since the choice.
            self._change_account(call, state, sooner, Reason.SATURATED)
            raise AccountChangedError
        # A route gets a share of what is left when the call first queues for it. Another task of
        # the call may have used the same account before.
        if state.deadline is call.deadline or state.route not in state.step.sent:
            state.deadline = self._share(call, state)
        # A caller that need not wait is sent, however little time is left.
        slot = limiter.take_free() if state.deadline.is_worth_starting(joined) else None
        state.queue_s = 0.0
        with slot or self._join_queue(call, state, joined) as slot:
            if slot.waited:
                try:
                    await self._wait_in_queue(call, state, slot, joined)
                finally:
                    state.queue_s = loop.time() - joined
                    call.queue_s += state.queue_s
            return await self._with_breaker(call, state, slot)

    def _join_queue(self, call: CallState, state: RouteState, now: float) -> Slot:
        """Join the route's queue, if there is time for the wait and a request."""
        limiter, latency = state.route.limiter, state.measured_latency
        wait = limiter.shortest_wait(latency)
        waits = wait > CLOCK_TOLERANCE
        if wait - self._max_wait_before(state.later_routes) > CLOCK_TOLERANCE:
            raise _saturated(state.route, wait)
        if not state.deadline.is_worth_starting(now + wait, latency if waits else None):
            if waits or state.last_error is not None:
                raise _saturated(state.route, wait)
            raise call.deadline_error()
        try:
            return limiter.join(state.deadline.latest_start(latency))
        except QueueFullError:
            raise _saturated(state.route, wait) from None

    def _max_wait_before(self, later_routes: Sequence[Route]) -> float:
        """Return the seconds in a queue after which the call goes to a later route.

        They are infinite if no later route lets calls through now.
        """
        if self._max_wait == math.inf or not self._settings.falls_back_on(Reason.SATURATED):
            return math.inf
        usable = any(route.breaker.allows_calls() for route in later_routes)
        return self._max_wait if usable else math.inf

    def _share(self, call: CallState, state: RouteState) -> Deadline:
        """Return when the call must be done with this route.

        A step leaves one reserve: for the next step, or for its own other accounts if none follows.
        """
        step = state.step
        if step.deadline is None or not step.attempt_number:
            step.deadline = self._route_deadline(call, step.later_routes)
        if step.has_accounts and step.deadline == call.deadline:
            now = call.loop.time()
            return self._route_deadline(call, step.untried(now))
        return step.deadline

    def _route_deadline(self, call: CallState, later_routes: Sequence[Route]) -> Deadline:
        """Return when a route must be done, so that a later one still has a chance."""
        if not later_routes or not self._settings.falls_back_on(Reason.TIMEOUT):
            return call.deadline
        return call.deadline.share(call.loop.time(), later_routes)

    async def _wait_in_queue(
        self, call: CallState, state: RouteState, slot: Slot, joined: float
    ) -> None:
        """Wait for the turn; leave when the time is needed elsewhere or the breaker opens."""
        loop = call.loop
        breaker, queues = state.route.breaker, AccountQueues(state, slot)
        if call.progress is not None:
            limiter = state.route.limiter
            call.progress.report(
                "queued",
                state.route,
                position=limiter.snapshot()["waiting"],
                wait_s=limiter.shortest_wait(state.measured_latency, slot),
            )
        while not slot.granted.done():
            if state.permit is None and state.route.rejects_at(loop.time()):
                raise PermitRevokedError  # wait for the probe's outcome outside the queue
            leaves_at = min(slot.useful_until, joined + self._max_wait_before(state.later_routes))
            left = leaves_at - loop.time()
            if left <= 0:
                raise _saturated(state.route, state.route.limiter.shortest_wait())
            if (sooner := queues.find_sooner()) is not None:
                self._change_account(call, state, sooner, Reason.SATURATED)
                raise AccountChangedError
            changes = [breaker.wait_for_change(), *queues.wait_for_changes()]
            timeout = min(left, queues.next_check - loop.time())
            await _first_of(*changes, keep=slot.granted, timeout=timeout)
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
            others = [route.breaker for route in state.other_routes] if may_leave else []
            if not answer.probing or any(other.allows_calls() for other in others):
                raise self._circuit_open_error(call, state.route, answer)
            # The last usable route, and only a probe in flight: its outcome is worth waiting for,
            # unless another route can be used before.
            until = min((other.blocked_until() or 0.0 for other in others), default=math.inf)
            wait = until - call.loop.time()
            if answer.retry_after is not None:
                wait = min(wait, answer.retry_after)
            if call.progress is not None:
                call.progress.report(
                    "queued",
                    state.route,
                    wait_s=None if math.isinf(wait) else max(0.0, wait),
                    reason=Reason.CIRCUIT_OPEN,
                )
            changes = [each.wait_for_change() for each in (breaker, *others)]
            with call.waiting_for_breaker():
                await _first_of(*changes, timeout=wait)
        state.permit = answer

    def _circuit_open_error(
        self, call: CallState, route: Route, rejection: Rejection
    ) -> CircuitOpenError:
        provider, model = route.provider.name, route.model
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


def _first_usable(routes: Sequence[Route]) -> Route | None:
    """Return the first route whose breaker lets calls through now, or None."""
    return next((route for route in routes if route.breaker.allows_calls()), None)


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
