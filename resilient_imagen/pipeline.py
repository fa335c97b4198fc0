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
from resilient_imagen.limiter.memory import EARLY, QueueFullError
from resilient_imagen.reasons import POLICIES, Reason, Retry
from resilient_imagen.turn import NotAdmittedError, Turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from resilient_imagen.attempt import AttemptRung, Served
    from resilient_imagen.call import Call
    from resilient_imagen.lane import Lane
    from resilient_imagen.limiter.memory import Ticket
    from resilient_imagen.settings import Settings
    from resilient_imagen.telemetry.reporter import Reporter

__all__ = ["WORTHWHILE", "Pipeline"]

WORTHWHILE = 1e-3
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
        attempts: AttemptRung,
        reporter: Reporter,
        random: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._attempts = attempts
        self._reporter = reporter
        self._random = random

    # -- deadline ---------------------------------------------------------------------------------

    async def run(self, call: Call, prepare: Callable[[], Awaitable[None]]) -> Served:
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
        raise call.out_of_time()

    # -- across routes ----------------------------------------------------------------------------

    async def _across_routes(self, call: Call) -> Served:
        while True:
            try:
                return await self._once_across(call)
            except CircuitOpenError:
                if self._settings.when_all_open == "fail" or not await self._some_due(call):
                    raise
                call.left.clear()
                call.fallback_cause = None  # the primary is asked again

    async def _once_across(self, call: Call) -> Served:
        for index, lane in enumerate(call.lanes):
            following = call.lanes[index + 1 :]
            try:
                return await self._on_route(call, lane, following)
            except DeadlineExceededError:
                raise  # ours: a provider's would have come as a timeout
            except ImageGenerationError as error:
                call.left.append(error)
            reason = call.left[-1].reason
            if not following or not self._settings.goes_on(reason):
                break
            now = asyncio.get_running_loop().time()
            if now + WORTHWHILE >= call.deadline:
                raise call.out_of_time()  # before it takes a probe's place on the next for nothing
            if index == 0:
                call.fallback_cause = reason
            lane.last_left = (now, reason)
            self._reporter.fell_back(call, lane, following[0], reason)
        raise call.verdict()

    async def _some_due(self, call: Call) -> bool:
        """Wait until a route that turned the call away lets a probe through.

        Routes that were not asked do not count: IMAGE_GEN_FALLBACK_ON keeps the call from them.

        Returns:
            False if no route will within the deadline.
        """
        loop = asyncio.get_running_loop()
        asked = [lane.gate for lane in call.lanes[: len(call.left)]]
        while not any(gate.usable() for gate in asked):
            due = min(gate.open_until() or 0.0 for gate in asked)
            if due >= call.deadline or math.isinf(due):
                return False
            await _first_of(*(gate.changed() for gate in asked), timeout=due - loop.time())
        await asyncio.sleep(0)  # the deadline and a cancellation get through in every round
        return True

    # -- per route: retry -------------------------------------------------------------------------

    async def _on_route(self, call: Call, lane: Lane, following: Sequence[Lane]) -> Served:
        retries = self._settings.max_retries
        first = lane is call.lanes[0]
        turn = Turn(
            lane=lane,
            following=following,
            limit=1 + (retries if first else min(1, retries)),
            patience=lane.timeout if first else min(lane.timeout, self._all_back_offs),
        )
        call.turn = turn
        await self._enter(call, turn)
        try:
            await call.set_up(lane)
            turn.tailored = await lane.tailor(call.request)
            return await self._retrying(call, turn)
        except (CircuitOpenError, SaturatedError):
            if turn.failed is None:
                raise
        finally:
            turn.drop_permit()
        raise turn.failed  # what was sent says more than what was then refused

    def leave_reserve(self, deadline: float, following: Sequence[Lane]) -> float:
        """Loop time by which a route must be done, so that the next one still has a chance."""
        if not self._settings.goes_on(Reason.TIMEOUT) or math.isinf(deadline):
            return deadline
        left = deadline - asyncio.get_running_loop().time()
        for lane in following:
            handover = deadline - min(lane.timeout, left / 2)
            if not lane.rejects_at(handover):
                return handover
        return deadline

    async def _retrying(self, call: Call, turn: Turn) -> Served:
        while True:
            try:
                return await self._paced(call, turn)
            except NotAdmittedError:
                await self._enter(call, turn)
            except ImageGenerationError:
                if turn.retry_in is None:
                    raise
                await self._back_off(call, turn, turn.retry_in)

    async def _enter(self, call: Call, turn: Turn) -> None:
        """Ask the breaker before queueing: an open route is skipped in microseconds."""
        gate = turn.lane.gate
        while isinstance(answer := gate.reserve(), Rejection):
            may_leave = self._settings.goes_on(Reason.CIRCUIT_OPEN)
            if not answer.probing or (may_leave and turn.alternative is not None):
                raise self._skipped(call, turn, answer)
            # The last usable route, and only a probe in flight: its verdict is worth waiting for,
            # unless a later route may be asked before.
            others = [lane.gate for lane in turn.following] if may_leave else []
            until = min((other.open_until() or 0.0 for other in others), default=math.inf)
            wait = until - asyncio.get_running_loop().time()
            if answer.retry_after is not None:
                wait = min(wait, answer.retry_after)
            await _first_of(*(each.changed() for each in (gate, *others)), timeout=wait)
        turn.permit = answer

    def _skipped(self, call: Call, turn: Turn, rejection: Rejection) -> CircuitOpenError:
        call.short_circuits += 1
        self._reporter.short_circuited(call, turn.lane, rejection)
        provider, model = turn.lane.provider.name, turn.lane.model
        what = f"skipped after {rejection.brief}" if rejection.brief else "skipped by the operator"
        return CircuitOpenError(
            f"{provider} {model}: {what}",
            provider=provider,
            model=model,
            retry_after=rejection.retry_after,
        )

    def _plan_retry(self, turn: Turn, error: ImageGenerationError) -> float | None:
        """Seconds to sleep before the same route is asked again, or None to leave it."""
        retry = POLICIES[error.reason].retry
        limit = turn.limit if retry is Retry.ALWAYS else min(turn.limit, 2)
        if retry is Retry.NEVER or turn.number >= limit:
            return None
        alternative = turn.alternative if self._settings.goes_on(error.reason) else None
        if retry is Retry.ONCE_IF_NO_OTHER_ROUTE and alternative is not None:
            return None
        now = asyncio.get_running_loop().time()
        if error.retry_after is None:
            delay = self._own_delay(turn, now)
        else:
            delay = error.retry_after
            if delay > self._patience(turn, alternative):
                return None
        latency = turn.lane.measured_latency(turn.tailored.request.resolution)
        wait = turn.lane.pacer.shortest_wait(latency)
        queues = wait > delay + EARLY  # and is turned away then if its time is too short
        sent, needed = now + max(delay, wait), (latency or 0.0) if queues else 0.0
        if sent + needed + WORTHWHILE >= turn.until or turn.lane.rejects_at(now + delay):
            return None
        return delay

    def _own_delay(self, turn: Turn, now: float) -> float:
        """The back-off: doubled each time, jittered, and never over its sum for slow failures."""
        delay = self._settings.retry_base_delay * 2.0 ** (turn.number - 1)
        delay *= 1 - 0.3 * self._random()
        if turn.failed_first is None:
            turn.failed_first = now
            return delay
        # A retry that was held up by pacing has waited already. And the next failure may take as
        # long as this one did, so that the route would be left too late.
        left = turn.failed_first + self._all_back_offs - now - (now - turn.sent_at)
        return max(0.0, min(delay - turn.queue_s, left))

    @property
    def _all_back_offs(self) -> float:
        """Seconds that a call sleeps on its first route at most."""
        return self._settings.retry_base_delay * (2.0**self._settings.max_retries - 1)

    def _patience(self, turn: Turn, alternative: Lane | None) -> float:
        """Return the longest hint, in seconds, that is waited for.

        Beside another route: no longer than falling back takes, and until that route's latency is
        known, no longer than our own back-offs would take in all.
        """
        if alternative is None:
            return turn.patience
        usual = alternative.usual_latency(turn.tailored.request.resolution)
        return self._all_back_offs if usual is None else min(self._all_back_offs, usual)

    async def _back_off(self, call: Call, turn: Turn, delay: float) -> None:
        """Sleep, holding nothing; wake at once when the breaker makes the wait useless."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        wake = started + delay
        try:
            while loop.time() < wake and not turn.lane.rejects_at(wake):
                await _first_of(turn.lane.gate.changed(), timeout=wake - loop.time())
        finally:
            call.backoff_s += loop.time() - started
        await self._enter(call, turn)

    # -- pace -------------------------------------------------------------------------------------

    def _share(self, call: Call, turn: Turn) -> float:
        """Return the loop time by which the call must be done with this route."""
        return self.leave_reserve(call.deadline, turn.following)

    async def _paced(self, call: Call, turn: Turn) -> Served:
        loop = asyncio.get_running_loop()
        pacer = turn.lane.pacer
        turn.retry_in = None
        joined = loop.time()
        if turn.failed is None:  # whatever took time before: the route gets a share of what is left
            turn.until = self._share(call, turn)
        latency = turn.lane.measured_latency(turn.tailored.request.resolution)
        wait = pacer.shortest_wait(latency)
        waits = wait > EARLY  # a caller that need not wait is sent, however little time is left
        useful_until = turn.until - WORTHWHILE - (latency or 0.0)
        if joined + wait > (useful_until if waits else turn.until - WORTHWHILE):
            if waits or turn.failed is not None:
                raise _saturated(turn.lane, wait)
            raise call.out_of_time()
        try:
            ticket = pacer.join(useful_until)
        except QueueFullError:
            raise _saturated(turn.lane, wait) from None
        with ticket:
            try:
                await self._queue(turn, ticket)
            finally:
                turn.queue_s = loop.time() - joined
                call.queue_s += turn.queue_s
            return await self._guarded(call, turn, ticket)

    async def _queue(self, turn: Turn, ticket: Ticket) -> None:
        """Wait for the turn; leave when the time is needed elsewhere or the breaker opens."""
        loop = asyncio.get_running_loop()
        gate = turn.lane.gate
        while not ticket.granted.done():
            if turn.permit is None and turn.lane.rejects_at(loop.time()):
                raise NotAdmittedError  # wait for a verdict, if at all, without a stand in here
            left = ticket.useful_until - loop.time()
            if left <= 0:
                raise _saturated(turn.lane, turn.lane.pacer.shortest_wait())
            await _first_of(gate.changed(), keep=ticket.granted, timeout=left)
            # Not before: a probe's permit is stale until other processes have agreed to it.
            turn.drop_permit(only_if_stale=True)
        if ticket.waited and loop.time() > ticket.useful_until:
            raise _saturated(turn.lane, turn.lane.pacer.shortest_wait())

    # -- breaker ----------------------------------------------------------------------------------

    async def _guarded(self, call: Call, turn: Turn, ticket: Ticket) -> Served:
        """Take the permit after queueing, or bring the one from the entrance; settle it once."""
        turn.drop_permit(only_if_stale=True)
        if turn.permit is None:
            answer = turn.lane.gate.admit()
            if isinstance(answer, Rejection):
                raise NotAdmittedError
            turn.permit = answer
        try:
            return await self._attempts.run(call, turn, ticket, turn.permit, self._plan_retry)
        finally:
            turn.drop_permit()


def _saturated(lane: Lane, wait: float) -> SaturatedError:
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
