"""The state of one call."""

from __future__ import annotations

import asyncio
import math
import os
import random
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final

from resilient_imagen.errors import (
    AllProvidersFailedError,
    CircuitOpenError,
    DeadlineExceededError,
    ImageGenerationError,
)
from resilient_imagen.pipeline.overlap import MAX_IN_FLIGHT, REFUSALS, SECONDS_TO_END, CancelCause
from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry.events import RequestEnded, RequestStarted

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.pipeline.deadline import Deadline
    from resilient_imagen.pipeline.on_start import OnStartHook
    from resilient_imagen.pipeline.overlap import OverlapKind
    from resilient_imagen.pipeline.progress import ProgressKind, ProgressReporter
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.route_state import RouteState
    from resilient_imagen.pipeline.step import Step, StepState
    from resilient_imagen.request import ImageRequest
    from resilient_imagen.result import Attempt, DroppedReference, ImageResult
    from resilient_imagen.telemetry.events import AttemptEnded

__all__ = ["CallState", "new_id"]

_SETUP: Final = "loading the SDK"
_BREAKER: Final = "waiting for a circuit breaker"

_ids: Final = random.Random()  # a separate generator: applications may seed the shared one
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_ids.seed)


def new_id() -> str:
    """Return an id for a call: 16 hexadecimal digits, as spans have."""
    return f"{_ids.getrandbits(64):016x}"


class _Spending:
    """A context manager that adds the seconds of its block to a sum.

    Most calls enter one, and a generator costs three times as much.
    """

    __slots__ = ("_loop", "_spent", "_started", "_what")

    def __init__(self, loop: asyncio.AbstractEventLoop, spent: dict[str, float], what: str) -> None:
        self._loop = loop
        self._spent = spent
        self._what = what

    def __enter__(self) -> None:
        self._started = self._loop.time()

    def __exit__(self, *_: object) -> None:
        seconds = self._loop.time() - self._started
        self._spent[self._what] = self._spent.get(self._what, 0.0) + seconds


@dataclass(slots=True, eq=False)
class CallState:
    """The state of one call in the pipeline."""

    id: str
    """The id of the call in events."""
    request: ImageRequest
    """The request; its references are set once they are loaded."""
    steps: tuple[Step, ...]
    """The steps that may serve the call, in order."""
    started: float
    """Loop time in seconds."""
    deadline: Deadline
    """The time by which the caller needs the image."""
    on_start: OnStartHook | None = None
    """Fires when the first request is sent; None if the caller gave no callback."""
    progress: ProgressReporter | None = None
    """Reports steps of the call to its caller; None if the caller wants none."""
    routes: tuple[Route, ...] = field(init=False)
    """The routes of all steps."""
    attempts: list[Attempt] = field(default_factory=list)
    """Every request that was sent and has ended, in the order of their ends."""
    in_flight: list[RouteState] = field(default_factory=list)
    """The states of the requests that are in flight, in the order in which they were sent."""
    route_errors: dict[int, ImageGenerationError] = field(default_factory=dict)
    """Why routes were left, by their index in ``routes``."""
    failures: list[BaseException] = field(default_factory=list)
    """The exception of each failed request, and the error that was made of it."""
    dropped_references: tuple[DroppedReference, ...] = ()
    """References that could not be used by any route."""
    reference_notes: tuple[str, ...] = ()
    """How references were changed, in words."""
    retries: int = 0
    """Requests that repeated one to the same route."""
    short_circuits: int = 0
    """Routes that were skipped because their circuit was open."""
    queue_s: float = 0.0
    """Seconds spent in queues."""
    backoff_s: float = 0.0
    """Seconds spent between retries."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds by activity, in words for the error of a passed deadline."""
    success_event: AttemptEnded | None = None
    """The event of the request that brought the image."""
    route_state: RouteState | None = None
    """The state on the current route, or on the last one."""
    fallback_cause: Reason | None = None
    """Why the first route was left."""
    overlap: OverlapKind | None = None
    """Why the call first had two requests in flight; None if it never had."""
    step: StepState | None = None
    """The state on the latest step; None before the first one."""
    branches: int = 0
    """How often the call has started on a step."""
    fallback_from: str | None = None
    """The route of the first step that was left, as provider:model."""
    on_late_attempt: Callable[[Attempt], None] | None = None
    """Receives the record of a request that ends after the call."""
    orders: str | None = None
    """The operators' orders that were in force at the start of the call."""
    ended: bool = False
    """Whether the caller has received an image or an error."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _changed: bool = False
    _change: asyncio.Future[None] | None = None

    def __post_init__(self) -> None:
        """Collect the routes."""
        self.routes = tuple(chain.from_iterable(self.steps))

    def following(self) -> list[Route]:
        """Return the routes that may be asked next, in order: of the latest step, then later ones.

        Those of the latest step are its other accounts that are usable and got no request yet.
        """
        if self.step is None:
            return list(self.routes)
        return [*self.step.untried(self.loop.time()), *self.step.later_routes]

    def note_error(self, route: Route, error: ImageGenerationError) -> None:
        """Record why a route was left."""
        self.route_errors[self.routes.index(route)] = error

    def note_rejection(self, route: Route, error: ImageGenerationError) -> None:
        """Record why a route was left, unless a failed request says more about it."""
        self.route_errors.setdefault(self.routes.index(route), error)

    def report(
        self,
        kind: ProgressKind,
        route: Route,
        *,
        wait_s: float | None = None,
        reason: Reason | None = None,
    ) -> None:
        """Report a step of the call, if its caller wants progress."""
        if self.progress is not None:
            self.progress.report(kind, route, wait_s=wait_s, reason=reason)

    def record(self, attempt: Attempt) -> None:
        """Add the record of a request that has ended."""
        if not self.ended:
            self.attempts.append(attempt)
        elif self.on_late_attempt is not None:
            self.on_late_attempt(attempt)

    def errors(self) -> list[ImageGenerationError]:
        """Return why routes were left, in the order of the routes."""
        return [self.route_errors[index] for index in sorted(self.route_errors)]

    def note_change(self) -> None:
        """Wake the stage across routes: a route has ended, or the next one is due."""
        self._changed = True
        change = self._change
        if change is not None and not change.done() and not self.loop.is_closed():
            change.set_result(None)

    async def changed(self) -> None:
        """Wait until ``note_change`` was called since the last time."""
        if not self._changed:
            self._change = self.loop.create_future()
            await self._change
        self._changed, self._change = False, None

    async def make_room(self) -> None:
        """End the request that has run longest if another one would be too many."""
        while len(self.in_flight) >= MAX_IN_FLIGHT:
            oldest = self.in_flight.pop(0)
            task = oldest.task
            oldest.cancel(CancelCause.DISPLACED)
            if task is not None:
                await asyncio.wait({task}, timeout=SECONDS_TO_END)

    def started_event(self) -> RequestStarted:
        """Return the event about the start of the call."""
        first = self.routes[0]
        return RequestStarted(
            at=self.started,
            call_id=self.id,
            request=self.request,
            provider=first.provider.name,
            model=first.model,
        )

    def ended_event(
        self, *, result: ImageResult | None, error: BaseException | None
    ) -> RequestEnded:
        """Return the event about the end of the call, which has a result or an error."""
        ours = error if isinstance(error, ImageGenerationError) else None
        if error is None:
            outcome = "success"
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            outcome = "cancelled"
        else:
            out_of_time = ours is not None and ours.reason is Reason.DEADLINE
            outcome = "deadline" if out_of_time else "error"
        first, ended = self.routes[0], self.loop.time()
        return RequestEnded(
            at=ended,
            call_id=self.id,
            operation=self.request.operation,
            provider=first.provider.name,
            outcome=outcome,
            latency_s=ended - self.started,
            attempts=len(self.attempts),
            retries=self.retries,
            short_circuits=self.short_circuits,
            queue_s=self.queue_s,
            backoff_s=self.backoff_s,
            setup_s=self.setup_s,
            fallback_cause=self.fallback_cause,
            fallback_from=None if self.fallback_cause is None else self.fallback_from,
            result=result,
            error=ours,
            error_type=None if error is None else type(error).__name__,
            served=self.success_event,
            hedged=None if self.overlap is None else str(self.overlap),
            orders=self.orders,
        )

    def spending(self, what: str) -> _Spending:
        """Count the seconds of a block."""
        return _Spending(self.loop, self.spent, what)

    async def set_up(self, route: Route) -> None:
        """Let the route's provider build what it needs, and count the time."""
        with self.spending(_SETUP):
            await route.warm_up()

    def waiting_for_breaker(self) -> _Spending:
        """Count the seconds of a block that waits until a breaker lets calls through."""
        return self.spending(_BREAKER)

    @property
    def setup_s(self) -> float:
        """Seconds in which SDKs were loaded and built."""
        return self.spent.get(_SETUP, 0.0)

    def with_attempts(self, error: ImageGenerationError) -> ImageGenerationError:
        """Return ``error`` with every request that was sent."""
        error.attempts = tuple(self.attempts)
        return error

    def final_error(self) -> ImageGenerationError:
        """Return the error for a call that no route served.

        One route: its own error. A later route that found the request itself at fault: that
        error, because its cause must not be lost behind an earlier outage. Otherwise all of them.
        """
        errors = tuple(self.errors())
        at_fault = [error for error in errors[1:] if error.reason in REFUSALS]
        if at_fault:
            return self.with_attempts(at_fault[-1])
        soonest = self._soonest_retry()
        if len(errors) == 1:
            errors[0].retry_after = soonest
            return self.with_attempts(errors[0])
        if all(isinstance(error, CircuitOpenError) for error in errors):
            first = errors[0]
            return self.with_attempts(
                CircuitOpenError(
                    "; ".join(str(error) for error in errors),
                    provider=first.provider,
                    model=first.model,
                    retry_after=soonest,
                )
            )
        return self.with_attempts(AllProvidersFailedError(errors=errors, retry_after=soonest))

    def _soonest_retry(self) -> float | None:
        """Return the seconds until the first route may serve, by its breaker or its vendor."""
        now = self.loop.time()
        errors: dict[int, ImageGenerationError | None] = {**self.route_errors}
        if self.route_state is not None:  # the route that it is on
            state = self.route_state
            errors.setdefault(self.routes.index(state.route), state.last_error)
        waits = []
        for index, error in errors.items():
            until = self.routes[index].breaker.blocked_until()
            hint = None if error is None else error.retry_after
            wait = hint if until is None else until - now
            if wait is not None and 0 < wait < math.inf:
                waits.append(wait)
        return min(waits, default=None)

    def deadline_error(self) -> ImageGenerationError:
        """Return the error for a call whose deadline passed; it begins with earlier failures."""
        parts = [str(error) for error in self.errors()]
        end = f"out of time{self._spent_on()}"
        if (state := self.route_state) is not None:
            if state.last_error is None:
                end = f"{state.route.provider.name} {state.route.model}: {end}"
            elif state.last_error not in self.route_errors.values():
                parts.append(str(state.last_error))
        text = "; ".join([*parts, end])
        return self.with_attempts(DeadlineExceededError(text, retry_after=self._soonest_retry()))

    def _spent_on(self) -> str:
        """Return the part of the call that took most of the time, in words.

        Return nothing if no part did, for example because the event loop was blocked.
        """
        spent = {
            **self.spent,
            "queueing": self.queue_s,
            "pausing before retries": self.backoff_s,
            "waiting for answers": math.fsum(attempt.latency_s for attempt in self.attempts),
        }
        most = max(spent, key=lambda what: spent[what])
        rest = self.loop.time() - self.started - math.fsum(spent.values())
        return f", mostly spent {most}" if spent[most] > max(0.0, rest) else ""
