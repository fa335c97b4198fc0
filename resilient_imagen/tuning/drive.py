"""Drives calls through the production ladder, on virtual time, against a truth."""

from __future__ import annotations

import asyncio
import math
import random
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from resilient_imagen.attempt import AttemptRung, Finished
from resilient_imagen.call import Call, StartSignal
from resilient_imagen.errors import ImageGenerationError, provider_failure
from resilient_imagen.lane import Lane
from resilient_imagen.pipeline import Pipeline
from resilient_imagen.providers.base import ProviderImage
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ImageRequest
from resilient_imagen.routing import new_gate, new_pacer
from resilient_imagen.telemetry.hub import Hub
from resilient_imagen.telemetry.reporter import Reporter
from resilient_imagen.tuning.loop import run_lean
from resilient_imagen.tuning.truth import Ask, Coin

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from resilient_imagen.breaker import BreakerState, Transition
    from resilient_imagen.settings import Settings
    from resilient_imagen.telemetry.hub import Sink
    from resilient_imagen.tuning.truth import Met, Truth

__all__ = ["Change", "Played", "Sent", "drive"]


class Sent(NamedTuple):
    """One request that was sent."""

    call: int
    route: int
    at: float
    seconds: float
    """How long it took, or until it was given up."""
    reason: Reason | None
    """None when it brought an image."""
    cost_usd: float
    """Dollars billed, or probably billed, for it."""
    seen: bool


class Change(NamedTuple):
    """One change of a route's breaker."""

    at: float
    route: int
    state: BreakerState


@dataclass(slots=True)
class Played:
    """What became of every call."""

    routes: tuple[str, ...]
    started: array[float] = field(default_factory=lambda: array("d"))
    """Seconds since the start, one a call."""
    seconds: array[float] = field(default_factory=lambda: array("d"))
    """How long each call took, in the same order."""
    served: array[int] = field(default_factory=lambda: array("b"))
    """Index of the route that served each call, -1 for none."""
    sent: list[Sent] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


_PICTURE = Finished(b"", "image/png")


@dataclass(frozen=True)
class _Numbered(ImageRequest):
    """A request that knows whose it is, and how often each route was asked."""

    call: int = 0
    asked: dict[int, int] = field(default_factory=dict)


class _StandIn:
    """A provider that answers what the truth says."""

    def __init__(self, name: str, world: _World) -> None:
        self.name = name
        self._world = world

    async def generate(self, request: ImageRequest, model: str) -> ProviderImage:
        assert isinstance(request, _Numbered)  # noqa: S101 - no other is ever driven
        return await self._world.answer(request, self.name, model)

    async def aclose(self) -> None:
        """Nothing is open."""


class _World:
    """The truth behind every stand-in, and the book of what was sent."""

    def __init__(self, truth: Truth, played: Played, seed: int) -> None:
        self._truth = truth
        self._played = played
        self._seed = seed
        self._index = {name: index for index, name in enumerate(played.routes)}

    async def answer(self, request: _Numbered, provider: str, model: str) -> ProviderImage:
        loop = asyncio.get_running_loop()
        route = self._index[f"{provider}:{model}"]
        number = request.asked.get(route, 0)
        request.asked[route] = number + 1
        at = loop.time()
        met = self._truth.meet(Ask(route, at, Coin(self._seed, request.call, route, number)))
        reason: Reason | None = Reason.TIMEOUT  # unless an answer comes in time
        try:
            if math.isinf(met.latency):
                await loop.create_future()
            await asyncio.sleep(met.latency)
            reason = met.reason
        finally:
            self._book(request.call, route, at, loop.time() - at, reason, met)
        if reason is not None:
            raise provider_failure(
                reason, provider=provider, model=model, retry_after=met.retry_after
            )
        return ProviderImage(b"", "image/png", model)

    def _book(
        self, call: int, route: int, at: float, seconds: float, reason: Reason | None, met: Met
    ) -> None:
        billed = reason is None or reason is Reason.TIMEOUT
        cost = met.cost_usd if billed else 0.0
        self._played.sent.append(Sent(call, route, at, seconds, reason, cost, met.seen))


class _Silent(Reporter):
    """Tells nobody, and composes nothing to tell."""

    def __init__(self) -> None:
        super().__init__(Hub(()))

    def attempt_started(self, *_: object) -> None: ...
    def attempt_served(self, *_: object) -> None: ...
    def attempt_failed(self, *_: object, **__: object) -> None: ...
    def short_circuited(self, *_: object) -> None: ...
    def fell_back(self, *_: object) -> None: ...


def drive(
    settings: Settings,
    truth: Truth,
    arrivals: Iterable[float],
    *,
    seed: int = 0,
    sinks: Sequence[Sink] = (),
) -> Played:
    """Send calls at ``arrivals`` (seconds, in order) through the ladder, and book what happens.

    Everything between the caller and the provider is what runs in production: deadline, routes,
    retries, pacing, breakers, time limits. Only the providers are stood in for.

    Args:
        settings: Its routes are asked in their order; keys are not needed.
        truth: What requests meet.
        arrivals: When each call starts.
        seed: For all chance, the ladder's jitter included.
        sinks: Told every event, as an ImageClient's would be. None makes it faster.
    """
    played = Played(tuple(settings.routes))
    run_lean(_drive(settings, truth, arrivals, seed, sinks, played))
    return played


async def _drive(
    settings: Settings,
    truth: Truth,
    arrivals: Iterable[float],
    seed: int,
    sinks: Sequence[Sink],
    played: Played,
) -> None:
    loop = asyncio.get_running_loop()
    reporter = Reporter(Hub(sinks)) if sinks else _Silent()
    lanes = _lanes(settings, _World(truth, played, seed), reporter, random.Random(seed), played)

    def siblings(provider: str) -> Sequence[Lane]:
        return [lane for lane in lanes if lane.provider.name == provider]

    attempts = AttemptRung(reporter, _finish, siblings)
    pipeline = Pipeline(settings, attempts, reporter, random.Random(seed).random)
    seconds = math.inf if settings.deadline is None else settings.deadline
    under_way: set[asyncio.Task[None]] = set()
    for index, at in enumerate(arrivals):
        if at > loop.time():
            await asyncio.sleep(at - loop.time())
        played.started.append(loop.time())
        played.seconds.append(0.0)
        played.served.append(-1)
        call = Call(
            id=str(index),
            request=_Numbered("x", call=index),
            lanes=lanes,
            started=loop.time(),
            deadline=loop.time() + seconds,
            start_signal=StartSignal(None),
        )
        task = loop.create_task(_one(pipeline, call, index, played, reporter if sinks else None))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    while under_way:
        await asyncio.wait(under_way)


async def _one(
    pipeline: Pipeline, call: Call, index: int, played: Played, reporter: Reporter | None
) -> None:
    if reporter is not None:
        reporter.request_started(call)
    error: ImageGenerationError | None = None
    try:
        served = await pipeline.run(call, _nothing_to_load)
        played.served[index] = call.lanes.index(served.lane)
    except ImageGenerationError as failed:
        error = failed
    played.seconds[index] = asyncio.get_running_loop().time() - call.started
    if reporter is not None:
        reporter.request_ended(call, result=None, error=error)


def _lanes(
    settings: Settings, world: _World, reporter: Reporter, chance: random.Random, played: Played
) -> tuple[Lane, ...]:
    names = dict.fromkeys(route.provider for route in settings.routes)
    providers = {name: _StandIn(name, world) for name in names}
    pacers = {name: new_pacer(settings, name) for name in names}
    lanes = []
    for index, route in enumerate(settings.routes):
        gate = new_gate(settings, route.provider, route.model, random=chance.random)

        def note(change: Transition, index: int = index) -> None:
            if not change.shadow:
                played.changes.append(Change(change.at, index, change.to_state))

        gate.subscribe(note)
        gate.subscribe(reporter.breaker_changed)
        lanes.append(
            Lane(
                providers[route.provider],
                route.model,
                gate,
                pacers[route.provider],
                settings.timeout_for(route.provider),
            )
        )
    return tuple(lanes)


async def _finish(_request: ImageRequest, _answer: ProviderImage) -> Finished:
    return _PICTURE


async def _nothing_to_load() -> None:
    return
