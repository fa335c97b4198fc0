"""Fallback: the steps of a call, in order, one after the other or two at a time.

Each step runs as a task. The next one starts when a step has failed for a reason that allows to
fall back, or beside a request in flight for one of the reasons in ``hedge``. A request beside one
in flight goes to another account of the same step, if one is usable. The first image wins.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_imagen.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    ImageGenerationError,
    SaturatedError,
    provider_failure,
)
from resilient_imagen.pipeline.overlap import (
    MAX_IN_FLIGHT,
    REFUSALS,
    SECONDS_TO_END,
    CancelCause,
    OverlapKind,
)
from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry.events import AccountChanged, RouteFallback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilient_imagen.pipeline.background import BackgroundRequests
    from resilient_imagen.pipeline.call_state import CallState
    from resilient_imagen.pipeline.hedge import HedgeBudget
    from resilient_imagen.pipeline.outcome import AttemptSuccess
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.route_state import RouteState
    from resilient_imagen.settings import Settings
    from resilient_imagen.telemetry.dispatcher import SinkDispatcher

__all__ = ["Fallback"]


@dataclass(slots=True, eq=False)
class _Branch:
    """One step of a call, as a task."""

    number: int
    """How many branches the call had started before."""
    state: RouteState
    task: asyncio.Task[AttemptSuccess | BaseException]
    started_as: OverlapKind | None
    """Why it runs beside an earlier route; None if that one had failed."""


class Fallback:
    """The stage across routes.

    Args:
        settings: The reasons that lead on to the next step.
        dispatcher: Receives an event for each fallback.
        on_step: The next stage; serves a call on one step.
        next_state: Returns the state of a call that continues with a route.
        budget: Limits hedges of slow requests.
        background: Takes over requests that continue after their call.
    """

    def __init__(
        self,
        settings: Settings,
        dispatcher: SinkDispatcher,
        on_step: Callable[[CallState, RouteState], Awaitable[AttemptSuccess]],
        next_state: Callable[[CallState, Route], RouteState],
        budget: HedgeBudget,
        background: BackgroundRequests,
    ) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._on_step = on_step
        self._next_state = next_state
        self._budget = budget
        self._background = background

    async def run(self, call: CallState) -> AttemptSuccess:
        """Ask the routes in order until one delivers or the reason forbids to fall back.

        Raises:
            ImageGenerationError: No image; the error says why, with every request sent.
        """
        branches: list[_Branch] = []
        call.step = None
        try:
            self._start(call, branches, call.routes[0])
            while True:
                await call.changed()
                ended: list[tuple[_Branch, AttemptSuccess | None]] = []
                for branch in tuple(branches):
                    if branch.task.done():
                        branches.remove(branch)
                        ended.append((branch, self._result(branch)))
                for branch, served in ended:
                    if served is not None and served.event is call.success_event:
                        return await self._deliver(call, branch, served, branches)
                for branch, _ in ended:
                    if (error := self._on_failure(call, branch, branches)) is not None:
                        await self._end(call, branches, CancelCause.CALLER)
                        raise call.with_attempts(error)
                self._start_overlaps(call, branches)
                if not branches:
                    raise call.final_error()
        finally:
            await self._end(call, branches, CancelCause.CALLER)

    # -- start ------------------------------------------------------------------------------------

    def _start(
        self,
        call: CallState,
        branches: list[_Branch],
        route: Route,
        kind: OverlapKind | None = None,
    ) -> None:
        state = call.route_state = self._next_state(call, route)
        state.overlap = kind
        task = call.loop.create_task(_run(self._on_step, call, state))
        state.task = task
        branches.append(_Branch(call.branches, state, task, kind))
        call.branches += 1

    def _fall_back(
        self,
        call: CallState,
        branch: _Branch,
        cause: Reason,
        branches: list[_Branch],
        following: Route,
        kind: OverlapKind | None = None,
    ) -> None:
        """Start the next route, because a branch has failed or takes too long.

        The call falls back if that is the next step's, but not if it is the same step's.
        """
        state = branch.state
        state.successor_started = True
        left, now = state.route, call.loop.time()
        hedged = None if kind is None else str(kind)
        after_s = None if kind is None else now - state.sent_at
        if following in state.step.routes:
            self._dispatcher.emit(
                AccountChanged(
                    call_id=call.id,
                    from_route=left.name,
                    to_route=following.name,
                    cause=cause,
                    hedged=hedged,
                    after_s=after_s,
                )
            )
        else:
            if state.step.index == 0:
                call.fallback_cause, call.fallback_from = cause, left.name
            left.last_fallback = (now, cause)
            self._dispatcher.emit(
                RouteFallback(
                    call_id=call.id,
                    from_route=left.name,
                    to_route=following.name,
                    cause=cause,
                    hedged=hedged,
                    after_s=after_s,
                )
            )
        call.report("falling_back", following, reason=cause)
        self._start(call, branches, following, kind)

    # -- an overlap is due ------------------------------------------------------------------------

    def _start_overlaps(self, call: CallState, branches: list[_Branch]) -> None:
        for branch in tuple(branches):
            for kind in branch.state.take_overlaps():
                self._on_overlap(call, branch, kind, branches)

    def _on_overlap(
        self, call: CallState, branch: _Branch, kind: OverlapKind, branches: list[_Branch]
    ) -> None:
        """Start the next route beside a request in flight, if that is allowed and useful."""
        following = call.following()
        if branch.state.successor_started or not following:
            return
        cause = kind.fallback_cause
        now = call.loop.time()
        if not self._settings.falls_back_on(cause) or not call.deadline.is_worth_starting(now):
            return
        if kind is not OverlapKind.TIMEOUT and not self._may_speculate(call, kind, branches):
            return
        self._fall_back(call, branch, cause, branches, following[0], kind)

    def _may_speculate(self, call: CallState, kind: OverlapKind, branches: list[_Branch]) -> bool:
        """Return whether the next route may get a request although a request may still succeed."""
        following = _next_usable(call)
        if len(branches) >= MAX_IN_FLIGHT or following is None:
            return False
        if kind is OverlapKind.PROBE:
            return True
        now = call.loop.time()
        usual = following.usual_latency(call.request.resolution)
        return call.deadline.is_worth_starting(now, usual) and self._budget.try_spend(now)

    # -- a route has ended ------------------------------------------------------------------------

    def _result(self, branch: _Branch) -> AttemptSuccess | None:
        """Return the image of a branch that has ended, or None if it failed.

        Raises:
            BaseException: A cancellation that the library did not cause, or a local bug.
        """
        if branch.state.cancel_cause is not None and branch.task.cancelled():
            return None
        error = None if branch.task.cancelled() else branch.task.exception()
        if isinstance(error, ImageGenerationError):
            return None
        ended = branch.task.result()
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def _on_failure(
        self, call: CallState, branch: _Branch, branches: list[_Branch]
    ) -> ImageGenerationError | None:
        """Record why a route was left, and start the next one if the reason allows it.

        Returns:
            The error that ends the call, or None.
        """
        error = _error_of(branch)
        if isinstance(error, DeadlineExceededError):
            # The library's: a provider's would have come as a timeout.
            return None if branches else error
        before = max(
            (each for each in branches if each.number < branch.number),
            key=lambda each: each.number,
            default=None,
        )
        refused_to_send = isinstance(error, CircuitOpenError | SaturatedError)
        speculative = branch.started_as in {OverlapKind.PROBE, OverlapKind.SLOW}
        leads_on = self._settings.falls_back_on(error.reason)
        if (
            refused_to_send
            and speculative
            and before is not None
            and (not leads_on or _next_usable(call) is None)
        ):
            # The route may serve later, when the request before it has failed.
            before.state.successor_started = False
            call.step = before.state.step
            call.step.left.pop(branch.state.route, None)
            call.fallback_cause = call.fallback_cause if call.step.index else None
            return None
        call.note_error(branch.state.route, error)
        if branch.state.step.index == 0 and error.reason in REFUSALS and not leads_on:
            return error
        following = call.following()
        if branch.state.successor_started or not following or not leads_on:
            return None
        if not call.deadline.is_worth_starting(call.loop.time()):
            return None if branches else call.deadline_error()  # a probe would be wasted
        kind = None if before is None else branch.started_as
        self._fall_back(call, branch, error.reason, branches, following[0], kind)
        return None

    async def _deliver(
        self,
        call: CallState,
        winner: _Branch,
        served: AttemptSuccess,
        branches: list[_Branch],
    ) -> AttemptSuccess:
        """Return the first image; end the other request, unless it is a probe."""
        if winner.state.step.index == 0:
            call.fallback_cause = None
        for branch in list(branches):
            if branch.number < winner.number and branch.state.is_pending_probe:
                branches.remove(branch)
                self._background.go_on_with(branch.state)
        await self._end(call, branches, CancelCause.DELIVERED)
        call.success_event = served.event  # another route may have delivered at the same time
        return served

    async def _end(self, call: CallState, branches: list[_Branch], cause: CancelCause) -> None:
        """Cancel what is left of the call, and wait until it is recorded."""
        if not branches:
            return
        tasks = []
        for branch in branches:
            if branch.state.past_limit or branch.state.successor_started:
                call.note_rejection(branch.state.route, _timeout_error(branch.state))
            with suppress(RuntimeError):  # the loop is closed
                branch.state.cancel(cause)
            tasks.append((branch.state, branch.task))
        branches.clear()
        if isinstance(sys.exception(), GeneratorExit):  # then nothing can be awaited
            return
        seconds = SECONDS_TO_END
        if cause is CancelCause.DELIVERED:  # the image must not miss the deadline
            seconds = min(seconds, max(0.0, call.deadline.latest_start() - call.loop.time()))
        try:
            await asyncio.wait([task for _, task in tasks], timeout=seconds)
        finally:
            for state, task in tasks:
                if not task.done():
                    self._background.wait_for(state)
                elif not task.cancelled():
                    task.exception()  # recorded; nothing else retrieves it


async def _run(
    on_step: Callable[[CallState, RouteState], Awaitable[AttemptSuccess]],
    call: CallState,
    state: RouteState,
) -> AttemptSuccess | BaseException:
    """Run one step as a task.

    Returns:
        The image; or an exception that ends the program, which a task must not raise: it would
        leave the event loop at once instead of reaching the caller.
    """
    try:
        return await on_step(call, state)
    except (asyncio.CancelledError, GeneratorExit, Exception):
        raise
    except BaseException as error:  # noqa: BLE001 - raised by the caller's task
        return error
    finally:
        state.task = state.note_change = None
        # Instead of a callback of the task, which would cost a round of the event loop. The caller
        # runs in the next round, when the task is done.
        call.note_change()


def _next_usable(call: CallState) -> Route | None:
    """Return the first unused route whose breaker lets calls through, or None."""
    return next((route for route in call.following() if route.breaker.allows_calls()), None)


def _error_of(branch: _Branch) -> ImageGenerationError:
    if branch.task.cancelled():
        return _timeout_error(branch.state)
    error = branch.task.exception()
    if not isinstance(error, ImageGenerationError):
        raise TypeError("a branch without an error has an image")
    return error


def _timeout_error(state: RouteState) -> ImageGenerationError:
    return provider_failure(
        Reason.TIMEOUT, provider=state.route.provider.name, model=state.route.model
    )
