"""The ladder: one call's way through, each rung adding one thing and calling only the next.

::

    deadline( across routes( per route: retry( pace( breaker( attempt timeout( provider ))))))

Read it from top to bottom; the last rung, one request and its verdict, is in ``attempt``.
Sinks are told what happens; they are never part of the way.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from resilient_imagen.breaker import Rejection
from resilient_imagen.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    ImageGenerationError,
    SaturatedError,
)
from resilient_imagen.limiter.memory import CLOCK_TOLERANCE, QueueFullError
from resilient_imagen.reasons import POLICIES, Reason, Retry
from resilient_imagen.turn import PermitRevoked, RouteState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from resilient_imagen.attempt import AttemptExecutor, AttemptSuccess
    from resilient_imagen.call import CallState
    from resilient_imagen.lane import Route
    from resilient_imagen.limiter.memory import Slot
    from resilient_imagen.settings import Settings
    from resilient_imagen.telemetry.reporter import EventEmitter

__all__ = ["MIN_USEFUL_SECONDS", "Pipeline"]

MIN_USEFUL_SECONDS = 1e-3
"""Seconds that must be left for a request to be worth sending."""


class Pipeline:
    """The rungs, and what they share.

    Args:
        settings: The knobs of every rung.
        attempts: The last rung.
        reporter: Tells the sinks.
        random: Chance for jitter, from 0 to 1.
    """

    def __init__(
        self,
        settings: Settings,
        attempts: AttemptExecutor,
        reporter: EventEmitter,
        random: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._attempts = attempts
        self._reporter = reporter
        self._random = random

    # -- deadline ---------------------------------------------------------------------------------

    async def run(self, call: CallState, prepare: Callable[[], Awaitable[None]]) -> AttemptSuccess:
        """Serve the call within its deadline: load what it needs, then go across the routes.

        Raises:
            ImageGenerationError: No image; the error says why, with every request sent.
        """
        try:
            if math.isinf(call.deadline):
                await prepare()
                return await self._across_routes(call)
            async with asyncio.timeout_at(call.deadline) as scope:
                await prepare()
                return await self._across_routes(call)
        except TimeoutError:
            if math.isinf(call.deadline) or not scope.expired():
                raise
        finally:
            await call.start_signal.finish()
        raise call.deadline_error()

    # -- across routes ----------------------------------------------------------------------------

    async def _across_routes(self, call: CallState) -> AttemptSuccess:
        while True:
            try:
                return await self._once_across(call)
            except CircuitOpenError:
                if self._settings.when_all_open == "fail" or not await self._wait_for_half_open(
                    call
                ):
                    raise
                call.route_errors.clear()
                call.fallback_cause = None  # the primary is asked again

    async def _once_across(self, call: CallState) -> AttemptSuccess:
        for index, lane in enumerate(call.routes):
            following = call.routes[index + 1 :]
            try:
                return await self._on_route(call, lane, following)
            except DeadlineExceededError:
                raise  # ours: a provider's would have come as a timeout
            except ImageGenerationError as error:
                call.route_errors.append(error)
            reason = call.route_errors[-1].reason
            if not following or not self._settings.falls_back_on(reason):
                break
            now = asyncio.get_running_loop().time()
            if now + MIN_USEFUL_SECONDS >= call.deadline:
                raise call.deadline_error()  # before it takes a probe's place on the next for nothing
            if index == 0:
                call.fallback_cause = reason
            lane.last_fallback = (now, reason)
            self._reporter.fell_back(call, lane, following[0], reason)
        raise call.final_error()

    async def _wait_for_half_open(self, call: CallState) -> bool:
        """Wait until a route that turned the call away lets a probe through.

        Routes that were not asked do not count: IMAGE_GEN_FALLBACK_ON keeps the call from them.

        Returns:
            False if no route will within the deadline.
        """
        loop = asyncio.get_running_loop()
        asked = [lane.breaker for lane in call.routes[: len(call.route_errors)]]
        while not any(gate.allows_calls() for gate in asked):
            due = min(gate.blocked_until() or 0.0 for gate in asked)
            if due >= call.deadline or math.isinf(due):
                return False
            await _first_of(*(gate.wait_for_change() for gate in asked), timeout=due - loop.time())
        await asyncio.sleep(0)  # the deadline and a cancellation get through in every round
        return True

    # -- per route: retry -------------------------------------------------------------------------

    async def _on_route(
        self, call: CallState, lane: Route, following: Sequence[Route]
    ) -> AttemptSuccess:
        retries = self._settings.max_retries
        first = lane is call.routes[0]
        turn = RouteState(
            route=lane,
            later_routes=following,
            max_attempts=1 + (retries if first else min(1, retries)),
            max_server_wait=lane.timeout
            if first
            else min(lane.timeout, self._total_backoff_budget),
        )
        call.route_state = turn
        await self._acquire_early(call, turn)
        try:
            await call.set_up(lane)
            turn.adapted = await lane.adapt_request(call.request)
            return await self._with_retries(call, turn)
        except (CircuitOpenError, SaturatedError):
            if turn.last_error is None:
                raise
        finally:
            turn.drop_permit()
        raise turn.last_error  # what was sent says more than what was then refused

    def route_deadline(self, deadline: float, following: Sequence[Route]) -> float:
        """Loop time by which a route must be done, so that the next one still has a chance."""
        if not self._settings.falls_back_on(Reason.TIMEOUT) or math.isinf(deadline):
            return deadline
        left = deadline - asyncio.get_running_loop().time()
        for lane in following:
            handover = deadline - min(lane.timeout, left / 2)
            if not lane.rejects_at(handover):
                return handover
        return deadline

    async def _with_retries(self, call: CallState, turn: RouteState) -> AttemptSuccess:
        while True:
            try:
                return await self._with_limiter(call, turn)
            except PermitRevoked:
                await self._acquire_early(call, turn)
            except ImageGenerationError:
                if turn.retry_in is None:
                    raise
                await self._back_off(call, turn, turn.retry_in)

    async def _acquire_early(self, call: CallState, turn: RouteState) -> None:
        """Ask the breaker before queueing: an open route is skipped in microseconds."""
        gate = turn.route.breaker
        while isinstance(answer := gate.try_acquire_early(), Rejection):
            may_leave = self._settings.falls_back_on(Reason.CIRCUIT_OPEN)
            if not answer.probing or (may_leave and turn.alternative is not None):
                raise self._circuit_open_error(call, turn, answer)
            # The last usable route, and only a probe in flight: its verdict is worth waiting for,
            # unless a later route may be asked before.
            others = [lane.breaker for lane in turn.later_routes] if may_leave else []
            until = min((other.blocked_until() or 0.0 for other in others), default=math.inf)
            wait = until - asyncio.get_running_loop().time()
            if answer.retry_after is not None:
                wait = min(wait, answer.retry_after)
            await _first_of(*(each.wait_for_change() for each in (gate, *others)), timeout=wait)
        turn.permit = answer

    def _circuit_open_error(
        self, call: CallState, turn: RouteState, rejection: Rejection
    ) -> CircuitOpenError:
        call.short_circuits += 1
        self._reporter.short_circuited(call, turn.route, rejection)
        provider, model = turn.route.provider.name, turn.route.model
        what = (
            f"skipped after {rejection.summary}" if rejection.summary else "skipped by the operator"
        )
        return CircuitOpenError(
            f"{provider} {model}: {what}",
            provider=provider,
            model=model,
            retry_after=rejection.retry_after,
        )

    def _decide_retry(self, turn: RouteState, error: ImageGenerationError) -> float | None:
        """Seconds to sleep before the same route is asked again, or None to leave it."""
        retry = POLICIES[error.reason].retry
        limit = turn.max_attempts if retry is Retry.ALWAYS else min(turn.max_attempts, 2)
        if retry is Retry.NEVER or turn.attempt_number >= limit:
            return None
        alternative = turn.alternative if self._settings.falls_back_on(error.reason) else None
        if retry is Retry.ONCE_IF_NO_OTHER_ROUTE and alternative is not None:
            return None
        now = asyncio.get_running_loop().time()
        if error.retry_after is None:
            delay = self._backoff_delay(turn, now)
        else:
            delay = error.retry_after
            if delay > self._max_hint_wait(turn, alternative):
                return None
        latency = turn.route.measured_latency(turn.adapted.request.resolution)
        wait = turn.route.limiter.shortest_wait(latency)
        queues = wait > delay + CLOCK_TOLERANCE  # and is turned away then if its time is too short
        sent, needed = now + max(delay, wait), (latency or 0.0) if queues else 0.0
        if sent + needed + MIN_USEFUL_SECONDS >= turn.deadline or turn.route.rejects_at(
            now + delay
        ):
            return None
        return delay

    def _backoff_delay(self, turn: RouteState, now: float) -> float:
        """The back-off: doubled each time, jittered, and never over its sum for slow failures."""
        delay = self._settings.retry_base_delay * 2.0 ** (turn.attempt_number - 1)
        delay *= 1 - 0.3 * self._random()
        if turn.first_failure_at is None:
            turn.first_failure_at = now
            return delay
        # A retry that was held up by pacing has waited already. And the next failure may take as
        # long as this one did, so that the route would be left too late.
        left = turn.first_failure_at + self._total_backoff_budget - now - (now - turn.sent_at)
        return max(0.0, min(delay - turn.queue_s, left))

    @property
    def _total_backoff_budget(self) -> float:
        """Seconds that a call sleeps on its first route at most."""
        return self._settings.retry_base_delay * (2.0**self._settings.max_retries - 1)

    def _max_hint_wait(self, turn: RouteState, alternative: Route | None) -> float:
        """Return the longest hint, in seconds, that is waited for.

        Beside another route: no longer than falling back takes, and until that route's latency is
        known, no longer than our own back-offs would take in all.
        """
        if alternative is None:
            return turn.max_server_wait
        usual = alternative.usual_latency(turn.adapted.request.resolution)
        return (
            self._total_backoff_budget if usual is None else min(self._total_backoff_budget, usual)
        )

    async def _back_off(self, call: CallState, turn: RouteState, delay: float) -> None:
        """Sleep, holding nothing; wake at once when the breaker makes the wait useless."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        wake = started + delay
        try:
            while loop.time() < wake and not turn.route.rejects_at(wake):
                await _first_of(turn.route.breaker.wait_for_change(), timeout=wake - loop.time())
        finally:
            call.backoff_s += loop.time() - started
        await self._acquire_early(call, turn)

    # -- pace -------------------------------------------------------------------------------------

    def _share(self, call: CallState, turn: RouteState) -> float:
        """Return the loop time by which the call must be done with this route."""
        return self.route_deadline(call.deadline, turn.later_routes)

    async def _with_limiter(self, call: CallState, turn: RouteState) -> AttemptSuccess:
        loop = asyncio.get_running_loop()
        pacer = turn.route.limiter
        turn.retry_in = None
        joined = loop.time()
        if (
            turn.last_error is None
        ):  # whatever took time before: the route gets a share of what is left
            turn.deadline = self._share(call, turn)
        latency = turn.route.measured_latency(turn.adapted.request.resolution)
        wait = pacer.shortest_wait(latency)
        waits = (
            wait > CLOCK_TOLERANCE
        )  # a caller that need not wait is sent, however little time is left
        useful_until = turn.deadline - MIN_USEFUL_SECONDS - (latency or 0.0)
        if joined + wait > (useful_until if waits else turn.deadline - MIN_USEFUL_SECONDS):
            if waits or turn.last_error is not None:
                raise _saturated(turn.route, wait)
            raise call.deadline_error()
        try:
            ticket = pacer.join(useful_until)
        except QueueFullError:
            raise _saturated(turn.route, wait) from None
        with ticket:
            try:
                await self._wait_in_queue(turn, ticket)
            finally:
                turn.queue_s = loop.time() - joined
                call.queue_s += turn.queue_s
            return await self._with_breaker(call, turn, ticket)

    async def _wait_in_queue(self, turn: RouteState, ticket: Slot) -> None:
        """Wait for the turn; leave when the time is needed elsewhere or the breaker opens."""
        loop = asyncio.get_running_loop()
        gate = turn.route.breaker
        while not ticket.granted.done():
            if turn.permit is None and turn.route.rejects_at(loop.time()):
                raise PermitRevoked  # wait for a verdict, if at all, without a stand in here
            left = ticket.useful_until - loop.time()
            if left <= 0:
                raise _saturated(turn.route, turn.route.limiter.shortest_wait())
            await _first_of(gate.wait_for_change(), keep=ticket.granted, timeout=left)
            # Not before: a probe's permit is stale until other processes have agreed to it.
            turn.drop_permit(only_if_stale=True)
        if ticket.waited and loop.time() > ticket.useful_until:
            raise _saturated(turn.route, turn.route.limiter.shortest_wait())

    # -- breaker ----------------------------------------------------------------------------------

    async def _with_breaker(
        self, call: CallState, turn: RouteState, ticket: Slot
    ) -> AttemptSuccess:
        """Take the permit after queueing, or bring the one from the entrance; settle it once."""
        turn.drop_permit(only_if_stale=True)
        if turn.permit is None:
            answer = turn.route.breaker.acquire()
            if isinstance(answer, Rejection):
                raise PermitRevoked
            turn.permit = answer
        try:
            return await self._attempts.run(call, turn, ticket, turn.permit, self._decide_retry)
        finally:
            turn.drop_permit()


def _saturated(lane: Route, wait: float) -> SaturatedError:
    return SaturatedError(provider=lane.provider.name, model=lane.model, retry_after=wait or None)


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
