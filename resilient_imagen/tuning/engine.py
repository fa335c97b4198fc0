"""Simulation engine: run calls through the production pipeline on virtual time."""

from __future__ import annotations

import asyncio
import math
import random
from functools import partial
from typing import TYPE_CHECKING

from resilient_imagen.effective_settings import variables_of
from resilient_imagen.errors import ImageGenerationError
from resilient_imagen.inflight import CallsInFlight
from resilient_imagen.pipeline.attempt import AttemptExecutor
from resilient_imagen.pipeline.call_state import CallState
from resilient_imagen.pipeline.deadline import Deadline
from resilient_imagen.pipeline.fitter import FittedImage, ImageFitter
from resilient_imagen.pipeline.hedge import OverlapPolicy
from resilient_imagen.pipeline.pipeline import Pipeline
from resilient_imagen.pipeline.route import Route
from resilient_imagen.pipeline.route_factory import new_breaker, new_limiter
from resilient_imagen.pipeline.step import group_by_step
from resilient_imagen.telemetry.dispatcher import SinkDispatcher
from resilient_imagen.telemetry.events import BreakerChanged, SettingsReported
from resilient_imagen.tuning.prices import model_of
from resilient_imagen.tuning.simulation_run import (
    Change,
    SimulatedImageRequest,
    SimulatedProvider,
    SimulationResult,
    SimulationRun,
)
from resilient_imagen.virtualtime import run_virtual

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from resilient_imagen.circuitbreaker import Transition
    from resilient_imagen.providers.base import ProviderResult
    from resilient_imagen.request import ImageRequest
    from resilient_imagen.settings import Settings
    from resilient_imagen.telemetry.sink import EventSink
    from resilient_imagen.tuning.outcome_model import OutcomeModel

__all__ = ["run_simulation"]


def run_simulation(
    settings: Settings,
    outcomes: OutcomeModel,
    arrivals: Iterable[float],
    *,
    seed: int = 0,
    sinks: Sequence[EventSink] = (),
) -> SimulationResult:
    """Send calls at ``arrivals`` (seconds, in order) through the pipeline, and record the outcomes.

    Everything between the caller and the provider is the production code: deadline, routes,
    retries, pacing, breakers, timeouts. Only the providers are simulated.

    Args:
        settings: The settings; keys are not needed.
        outcomes: The outcomes of requests.
        arrivals: The start of each call.
        seed: Seed of all random choices, including the pipeline's jitter.
        sinks: Sinks that receive every event, as an ImageClient's do.

    Raises:
        RuntimeError: A loop is running in this thread.
    """
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - documented by asyncio as public
        raise RuntimeError(
            "simulate, replay and sweep run their own event loop; inside a running loop, call them"
            " by asyncio.to_thread"
        )
    result = SimulationResult(tuple(route.key for route in settings.accounts))

    async def main() -> None:
        await _Simulation(settings, SimulationRun(outcomes, result, seed), sinks).run(arrivals)

    run_virtual(main())
    return result


class _Simulation:
    """The pipeline with simulated providers."""

    def __init__(self, settings: Settings, run: SimulationRun, sinks: Sequence[EventSink]) -> None:
        self._run = run
        self._settings = settings
        self._observed = bool(sinks)
        self._dispatcher = SinkDispatcher(sinks)
        self._seconds = math.inf if settings.deadline is None else settings.deadline
        self._routes = self._build_routes(settings)
        self._steps = group_by_step(self._routes, settings.routes)
        self._pipeline = Pipeline(
            settings,
            AttemptExecutor(
                self._dispatcher, _NoFitter("none"), OverlapPolicy(settings), self._of_provider
            ),
            self._dispatcher,
            random.Random(run.seed).random,
        )
        self._in_flight = CallsInFlight()

    async def run(self, arrivals: Iterable[float]) -> None:
        """Start all calls, and wait until the last one and all its requests have ended."""
        if self._observed:
            variables = variables_of(self._settings)
            self._dispatcher.emit(SettingsReported(client_id="simulated", variables=variables))
        try:
            async with asyncio.TaskGroup() as calls:
                for number, at in enumerate(arrivals):
                    await _until(at)
                    calls.create_task(self._call(number))
        except ExceptionGroup as bugs:  # no error of a call, which is a result
            raise bugs.exceptions[0] from None
        await self._pipeline.background.drained()

    async def _call(self, number: int) -> None:
        loop, request = asyncio.get_running_loop(), SimulatedImageRequest("x", call=number)
        call = CallState(
            id=str(number),
            request=request,
            steps=self._steps,
            started=loop.time(),
            deadline=Deadline.after(self._seconds, loop.time()),
            on_late_attempt=partial(self._run.record_attempt, request),
        )
        self._run.record_start(call.started)
        if self._observed:
            self._dispatcher.emit(call.started_event())
        success, error = None, None
        try:
            success = await self._pipeline.run(call, None, self._in_flight)
        except ImageGenerationError as failed:
            error = failed
        call.ended = True
        if self._observed:
            result = None if success is None else success.result(call)
            self._dispatcher.emit(call.ended_event(result=result, error=error))
        served = -1 if success is None else self._routes.index(success.route)
        for attempt in call.attempts:
            self._run.record_attempt(request, attempt)
        self._run.record_end(number, loop.time() - call.started, served)

    def _of_provider(self, provider: str) -> Sequence[Route]:
        return [route for route in self._routes if route.provider.name == provider]

    def _build_routes(self, settings: Settings) -> tuple[Route, ...]:
        names = dict.fromkeys(route.provider for route in settings.accounts)
        providers = {name: SimulatedProvider(name, self._run) for name in names}
        limiters = {name: new_limiter(settings, name) for name in names}
        jitter = random.Random(self._run.seed).random
        routes = []
        for index, name in enumerate(settings.accounts):
            breaker = new_breaker(settings, name.provider, name.model, random=jitter)
            breaker.subscribe(partial(self._breaker_changed, index), inline=True)
            routes.append(
                Route(
                    providers[name.provider],
                    model_of(name, settings),
                    breaker,
                    limiters[name.provider],
                    settings.timeout_for(name.provider),
                )
            )
        return tuple(routes)

    def _breaker_changed(self, route: int, change: Transition) -> None:
        if not change.shadow:
            self._run.record_change(Change(change.at, route, change.to_state))
        self._dispatcher.emit(BreakerChanged(at=change.at, transition=change))


async def _until(at: float) -> None:
    """Wait until loop time ``at``; return at once if it has come."""
    loop = asyncio.get_running_loop()
    if at > loop.time():
        reached = loop.create_future()
        loop.call_at(at, reached.set_result, None)
        await reached


class _NoFitter(ImageFitter):
    """An image fitter that returns a constant image, because simulated responses have none."""

    async def fit(self, request: ImageRequest, answer: ProviderResult) -> FittedImage:
        """Return the image."""
        del request, answer
        return _IMAGE


_IMAGE = FittedImage(b"", "image/png")
