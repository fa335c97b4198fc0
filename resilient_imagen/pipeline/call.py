"""One call's own state: its deadline, what was tried, why each route was left, the final word."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import os
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from resilient_imagen.errors import (
    AllProvidersFailedError,
    CircuitOpenError,
    DeadlineExceededError,
    ImageGenerationError,
)
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from resilient_imagen.pipeline.deadline import Deadline
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.route_state import RouteState
    from resilient_imagen.request import ImageRequest
    from resilient_imagen.result import Attempt, DroppedReference
    from resilient_imagen.telemetry.events import AttemptEnded

__all__ = ["CallState", "OnStart", "OnStartHook", "new_id"]

_log = logging.getLogger("resilient_imagen")

OnStart: TypeAlias = Callable[[], Awaitable[object] | object]
"""A sync or async callable without arguments, called once, just before the first request is sent.

It cannot fail or delay the call: an async one runs beside the request and is cancelled when the
call is over; what it raises is logged. A sync one runs on the event loop and must not block.
"""

_REFUSALS = frozenset({Reason.CONTENT_BLOCKED, Reason.INVALID_REQUEST})


_SETUP: Final = "loading the SDK"

_ids: Final = random.Random()  # of its own: applications may seed the one that all share
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_ids.seed)


def new_id() -> str:
    """A call's id: 16 hexadecimal digits, as spans have."""
    return f"{_ids.getrandbits(64):016x}"


class OnStartHook:
    """Calls ``on_start`` once and keeps its failure, its slowness and its end away from the call.

    An ordinary function runs on the event loop, so it must not block. What an async one returns
    becomes a task beside the request; it is cancelled when the call is over. Whatever they raise is
    logged, but for KeyboardInterrupt and SystemExit, which end the program as anywhere else.
    """

    def __init__(self, on_start: OnStart | None) -> None:
        self._on_start = on_start
        self._task: asyncio.Task[object] | None = None

    def fire(self) -> None:
        """Call ``on_start`` the first time, with the request ready to be sent; later do nothing."""
        on_start, self._on_start = self._on_start, None
        if on_start is None:
            return
        try:
            answer = on_start()
            if inspect.isawaitable(answer):
                running = answer if inspect.iscoroutine(answer) else _run(answer)
                self._task = asyncio.create_task(running)
                self._task.add_done_callback(_note_end)
        except BaseException as error:
            if _ends_the_program(error):
                raise
            _log_failure(error)

    async def finish(self) -> None:
        """Cancel an ``on_start`` that still runs. Does not wait for one that ignores it."""
        task, self._task = self._task, None
        if task is None:
            return
        thrown_away = isinstance(sys.exception(), GeneratorExit)  # then nothing can be awaited
        try:
            if not thrown_away:
                await asyncio.sleep(0)  # a request that failed at once has not let it begin
        finally:
            if not task.done():
                _end(task)
        for _ in range(0 if thrown_away else _STEPS_TO_END):
            if task.done():
                return
            await asyncio.sleep(0)


_STEPS_TO_END: Final = 10
"""Rounds of the event loop in which a cancelled ``on_start`` can end before its call does."""

_unending: Final[set[asyncio.Task[object]]] = set()
"""Cancelled callbacks that go on for now. The event loop itself keeps weak references only."""


def _end(task: asyncio.Task[object]) -> None:
    _log.warning("on_start was not done when the call was, and is cancelled")
    with suppress(RuntimeError):  # the loop is closed
        task.cancel()
        _unending.add(task)
        task.add_done_callback(_unending.discard)


def _ends_the_program(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup((KeyboardInterrupt, SystemExit)) is not None
    return isinstance(error, KeyboardInterrupt | SystemExit)


async def _run(answer: Awaitable[object]) -> None:
    await answer


def _note_end(task: asyncio.Task[object]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log_failure(error)


def _log_failure(error: BaseException) -> None:
    _log.warning("on_start failed: %s", type(error).__name__)


@dataclass(slots=True)
class CallState:
    """What the pipeline carries from stage to stage."""

    id: str
    request: ImageRequest
    routes: tuple[Route, ...]
    started: float
    """Loop time in seconds."""
    deadline: Deadline
    """When the caller wants an answer."""
    start_signal: OnStartHook
    attempts: list[Attempt] = field(default_factory=list)
    route_errors: list[ImageGenerationError] = field(default_factory=list)
    """Why each route was left, in order."""
    failures: list[BaseException] = field(default_factory=list)
    """What each request that failed raised, whether or not it reached the caller."""
    dropped_references: tuple[DroppedReference, ...] = ()
    reference_notes: tuple[str, ...] = ()
    retries: int = 0
    short_circuits: int = 0
    queue_s: float = 0.0
    backoff_s: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds by what else they were spent on, in words for the error of a passed deadline."""
    told_from: float = 0.0
    """The level, as logging counts, from which on somebody is told what happens in it."""
    success_event: AttemptEnded | None = None
    """What was told of the request that brought the image."""
    route_state: RouteState | None = None
    """Its time on the route that it is on, or was on last."""
    fallback_cause: Reason | None = None
    """Why the primary was left."""

    @contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Count the seconds of a block."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            yield
        finally:
            self.spent[what] = self.spent.get(what, 0.0) + loop.time() - started

    async def set_up(self, route: Route) -> None:
        """Let the route's provider build what it needs, and count the time."""
        with self.spending(_SETUP):
            await route.warm_up()

    @property
    def setup_s(self) -> float:
        """Seconds in which SDKs were loaded and built."""
        return self.spent.get(_SETUP, 0.0)

    def with_attempts(self, error: ImageGenerationError) -> ImageGenerationError:
        """``error`` as the caller gets it: with every request that was sent."""
        error.attempts = tuple(self.attempts)
        return error

    def final_error(self) -> ImageGenerationError:
        """The error for a call that no route served.

        One route: its own error. A later route that found the request itself at fault: that
        error, for its cause must not be lost behind an earlier outage. Otherwise all of them.
        """
        errors = tuple(self.route_errors)
        at_fault = [error for error in errors[1:] if error.reason in _REFUSALS]
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
        """Seconds until the first of the routes may serve, as its breaker or its vendor says."""
        now = asyncio.get_running_loop().time()
        errors: list[ImageGenerationError | None] = [*self.route_errors]
        present = self.routes[len(errors) : len(errors) + 1]  # the route that it is on
        if self.route_state is not None and any(
            route is self.route_state.route for route in present
        ):
            errors.append(self.route_state.last_error)
        waits = []
        for route, error in zip(self.routes, errors, strict=False):
            until = route.breaker.blocked_until()
            hint = None if error is None else error.retry_after
            wait = hint if until is None else until - now
            if wait is not None and 0 < wait < math.inf:
                waits.append(wait)
        return min(waits, default=None)

    def deadline_error(self) -> ImageGenerationError:
        """The error for a call whose deadline passed, led by what went wrong until then."""
        parts = [str(error) for error in self.route_errors]
        end = f"out of time, {self._spent_on()}"
        if (state := self.route_state) is not None:
            if state.last_error is None:
                end = f"{state.route.provider.name} {state.route.model}: {end}"
            elif state.last_error not in self.route_errors:
                parts.append(str(state.last_error))
        text = "; ".join([*parts, end])
        return self.with_attempts(DeadlineExceededError(text, retry_after=self._soonest_retry()))

    def _spent_on(self) -> str:
        """Say in words what took most of the time."""
        spent = {
            **self.spent,
            "queueing": self.queue_s,
            "pausing before retries": self.backoff_s,
            "waiting for answers": math.fsum(attempt.latency_s for attempt in self.attempts),
        }
        total = asyncio.get_running_loop().time() - self.started
        spent["waiting for a circuit breaker"] = total - math.fsum(spent.values())
        return f"mostly spent {max(spent, key=lambda what: spent[what])}"
