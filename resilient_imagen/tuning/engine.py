"""Simulation engine: run calls through the production pipeline on virtual time."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from resilient_imagen.errors import CircuitOpenError, ImageGenerationError, SaturatedError
from resilient_imagen.inflight import CallsInFlight
from resilient_imagen.pipeline.attempt import AttemptExecutor
from resilient_imagen.pipeline.deadline import Deadline
from resilient_imagen.pipeline.fallback import Fallback
from resilient_imagen.pipeline.fitter import FittedImage, ImageFitter
from resilient_imagen.pipeline.hedge import OverlapPolicy
from resilient_imagen.pipeline.on_start import OnStartHook
from resilient_imagen.pipeline.pipeline import PermitRevokedError, Pipeline
from resilient_imagen.pipeline.route import Route
from resilient_imagen.pipeline.router import new_breaker, new_limiter
from resilient_imagen.pipeline.state import CallState
from resilient_imagen.ratelimit.limiter import RateLimiter
from resilient_imagen.reasons import Reason
from resilient_imagen.result import ImageResult
from resilient_imagen.telemetry.dispatcher import SinkDispatcher
from resilient_imagen.telemetry.events import BreakerChanged
from resilient_imagen.tuning.fast_path import Climber, Express, HandingRateLimiter
from resilient_imagen.tuning.loop import LeanLoop, run_lean
from resilient_imagen.tuning.simulation_run import (
    Change,
    SimulatedImageRequest,
    SimulatedProvider,
    SimulationResult,
    SimulationRun,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from resilient_imagen.circuitbreaker import Transition
    from resilient_imagen.pipeline.outcome import AttemptSuccess
    from resilient_imagen.pipeline.overlap import OverlapKind
    from resilient_imagen.pipeline.state import RouteState
    from resilient_imagen.providers.base import ProviderResult
    from resilient_imagen.ratelimit.limiter import Slot
    from resilient_imagen.request import ImageRequest
    from resilient_imagen.result import Attempt
    from resilient_imagen.settings import Settings
    from resilient_imagen.telemetry.sink import EventSink
    from resilient_imagen.tuning.outcome_model import OutcomeModel

__all__ = ["run_simulation"]


def run_simulation(
    settings: Settings,
    truth: OutcomeModel,
    arrivals: Iterable[float],
    *,
    seed: int = 0,
    sinks: Sequence[EventSink] = (),
    short_cut: bool = True,
) -> SimulationResult:
    """Send calls at ``arrivals`` (seconds, in order) through the pipeline, and record the outcomes.

    Everything between the caller and the provider is the production code: deadline, routes,
    retries, pacing, breakers, timeouts. Only the providers are simulated.

    Args:
        settings: The settings; keys are not needed.
        truth: The outcomes of requests.
        arrivals: The start of each call.
        seed: Seed of all random choices, including the pipeline's jitter.
        sinks: Sinks that receive every event, as an ImageClient's do.
        short_cut: Whether calls without problems use the fast path; never with sinks.
    """
    played = SimulationResult(tuple(settings.routes))

    async def main() -> None:
        play = _Play(settings, truth, played, seed, sinks, short_cut=short_cut and not sinks)
        await play.run(iter(arrivals))

    run_lean(main())
    return played


class _Play:
    """One run: the pipeline, the calls and their results."""

    def __init__(
        self,
        settings: Settings,
        truth: OutcomeModel,
        played: SimulationResult,
        seed: int,
        sinks: Sequence[EventSink],
        *,
        short_cut: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, LeanLoop):
            raise TypeError("a run needs its own loop")
        self._loop = loop
        self._played = played
        self._dispatcher = SinkDispatcher(sinks)
        self._seconds = math.inf if settings.deadline is None else settings.deadline
        world = SimulationRun(truth, played, seed)
        self._routes = self._build(settings, world, random.Random(seed), handing=short_cut)
        overlap = OverlapPolicy(settings)
        self._world = world
        self._pipeline = _SimulatedPipeline(
            settings,
            AttemptExecutor(self._dispatcher, _NoFitter("none"), overlap, self._of_provider),
            self._dispatcher,
            random.Random(seed).random,
        )
        self._express = (
            Express(
                loop,
                self._routes,
                self._seconds,
                SimulatedImageRequest("x").resolution,
                self._pipeline,
                overlap,
                world,
                self._climb,
                self._ended,
            )
            if short_cut
            else None
        )
        self._in_flight = CallsInFlight()
        self._open = 0
        self._climbing_since = -1.0
        self._over = self._loop.create_future()

    async def run(self, arrivals: Iterator[float]) -> None:
        """Start all calls, and wait until the last one and all its requests have ended."""
        self._open += 1  # the arrivals
        self._next(arrivals)
        await self._over
        await self._pipeline.background.drained()

    def _next(self, arrivals: Iterator[float]) -> None:
        for at in arrivals:
            if at > self._loop.time():
                self._loop.plain_at(at, self._arrive_and_go_on, arrivals)
                return
            self._arrive()
        self._close()

    def _arrive_and_go_on(self, arrivals: Iterator[float]) -> None:
        self._arrive()
        self._next(arrivals)

    def _arrive(self) -> None:
        call, now = len(self._played.started), self._loop.time()
        self._played.started.append(now)
        self._played.seconds.append(0.0)
        self._played.served.append(-1)
        self._open += 1
        self._pipeline.budget.count_call(now)
        # A new call must not overtake a call that is handed to the pipeline at the same time.
        behind = now <= self._climbing_since
        if self._express is None or behind or not self._express.start(call):
            self._climb(Climber(call, now, 0))

    def _climb(self, climber: Climber) -> None:
        self._climbing_since = self._loop.time()
        self._loop.create_task(self._run_pipeline(climber), context=climber.context)

    async def _run_pipeline(self, climber: Climber) -> None:
        number = climber.call
        request = SimulatedImageRequest("x", call=number)
        call = _Handed(
            id=str(number),
            request=request,
            routes=self._routes,
            started=climber.asked,
            deadline=Deadline.after(self._seconds, climber.asked),
            on_start=OnStartHook(None),
            until=climber.until,
            queued=climber.queued,
            first_route=climber.route,
            on_attempt=partial(self._world.record_attempt, request),
        )
        if climber.ticket is not None:
            self._routes[climber.route].limiter.release(climber.ticket)
        self._dispatcher.emit(call.started_event())
        result, error = None, None
        try:
            served = await self._pipeline.run(call, _nothing_to_load, self._in_flight)
        except ImageGenerationError as failed:
            error = failed
        except Exception as bug:  # noqa: BLE001 - a bug in the library: it ends the run, which raises it
            if not self._over.done():
                self._over.set_exception(bug)
            return
        else:
            self._played.served[number] = self._routes.index(served.route)
            result = _result(call, served)
        self._dispatcher.emit(call.ended_event(result=result, error=error))
        self._note_end(number)

    def _ended(self, call: int, route: int) -> None:
        self._played.served[call] = route
        self._note_end(call)

    def _note_end(self, call: int) -> None:
        self._played.seconds[call] = self._loop.time() - self._played.started[call]
        self._close()

    def _close(self) -> None:
        self._open -= 1
        if not self._open:
            self._over.set_result(None)

    def _of_provider(self, provider: str) -> Sequence[Route]:
        return [route for route in self._routes if route.provider.name == provider]

    def _build(
        self, settings: Settings, world: SimulationRun, chance: random.Random, *, handing: bool
    ) -> tuple[Route, ...]:
        names = dict.fromkeys(route.provider for route in settings.routes)
        providers = {name: SimulatedProvider(name, world) for name in names}
        kind = HandingRateLimiter if handing else RateLimiter
        limiters = {name: new_limiter(settings, name, kind=kind) for name in names}
        routes = []
        for index, route in enumerate(settings.routes):
            breaker = new_breaker(settings, route.provider, route.model, random=chance.random)

            def note(change: Transition, index: int = index) -> None:
                if not change.shadow:
                    self._played.changes.append(Change(change.at, index, change.to_state))

            breaker.subscribe(note, inline=True)
            breaker.subscribe(self._breaker_changed, inline=True)
            routes.append(
                Route(
                    providers[route.provider],
                    route.model,
                    breaker,
                    limiters[route.provider],
                    settings.timeout_for(route.provider),
                )
            )
        return tuple(routes)

    def _breaker_changed(self, transition: Transition) -> None:
        self._dispatcher.emit(BreakerChanged(at=transition.at, transition=transition))


@dataclass(slots=True)
class _Handed(CallState):
    """A call that may have begun on the fast path."""

    until: Deadline | None = None
    """Deadline for its present route, if the fast path has computed it."""
    queued: Slot | None = None
    """Its slot, if it joined the queue on the fast path, which it did when it started."""
    first_route: int = 0
    """Index of the route to ask first; the circuits of earlier ones were open."""
    on_attempt: Callable[[Attempt], None] | None = None
    """Receives the record of every request."""

    def record(self, attempt: Attempt) -> None:
        """Add the record of a request that has ended."""
        if self.on_attempt is not None:
            self.on_attempt(attempt)
        CallState.record(self, attempt)  # super() does not work in a dataclass with slots


class _SimulatedPipeline(Pipeline):
    """The production pipeline, which can continue a call from the fast path."""

    def _count(self, call: CallState) -> None:
        """Do nothing: a run counts all calls when they arrive."""

    def _new_fallback(self) -> Fallback:
        return _SimulatedFallback(
            self._settings,
            self._dispatcher,
            self._on_route,
            self._new_state,
            self.budget,
            self.background,
        )

    def _share(self, call: CallState, state: RouteState) -> Deadline:
        if isinstance(call, _Handed) and call.until is not None:
            until, call.until = call.until, None
            return until
        return super()._share(call, state)

    async def _wait_in_queue(self, state: RouteState, slot: Slot, joined: float) -> None:
        call = state.call
        if isinstance(call, _Handed) and call.queued is slot:
            joined = call.started
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await super()._wait_in_queue(state, slot, joined)
        except (PermitRevokedError, SaturatedError):
            # A call that leaves the fast path for the same cause needs one step of the loop more.
            if loop.time() > began:
                await asyncio.sleep(0)
            raise


class _SimulatedFallback(Fallback):
    """The production stage across routes, which can begin at a later route."""

    def _start(
        self,
        call: CallState,
        branches: list[Any],
        index: int,
        kind: OverlapKind | None = None,
    ) -> None:
        if index == 0 and isinstance(call, _Handed) and call.first_route:
            index, call.first_route = call.first_route, 0
            call.fallback_cause = Reason.CIRCUIT_OPEN
            for before in range(index):
                call.route_errors[before] = CircuitOpenError(
                    "skipped on the fast path", retry_after=None
                )
        super()._start(call, branches, index, kind)


_PICTURE = FittedImage(b"", "image/png")


def _result(call: CallState, served: AttemptSuccess) -> ImageResult:
    """Return the result that the event about the end of a served call carries."""
    return ImageResult(
        image_bytes=served.image.data,
        mime_type=served.image.mime_type,
        provider=served.route.provider.name,
        model=served.route.model,
        attempts=len(call.attempts),
        fallback_reason=call.fallback_cause,
        dropped_references=(),
        usage=served.usage,
        latency_s=asyncio.get_running_loop().time() - call.started,
    )


class _NoFitter(ImageFitter):
    """An image fitter that returns a constant image, because simulated responses have none."""

    async def fit(self, request: ImageRequest, answer: ProviderResult) -> FittedImage:
        """Return the image."""
        del request, answer
        return _PICTURE


async def _nothing_to_load() -> None:
    return
