"""Simulation run: simulated providers that respond by an outcome model, and their results."""

from __future__ import annotations

import asyncio
import math
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.errors import provider_failure
from resilient_imagen.providers.base import ProviderImage, ProviderResult, TokenUsage
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ImageRequest
from resilient_imagen.tuning.outcome_model import DeterministicRng, SimulatedRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.circuitbreaker import BreakerState
    from resilient_imagen.result import Attempt
    from resilient_imagen.tuning.outcome_model import OutcomeModel, SimulatedOutcome

__all__ = [
    "Change",
    "SimulatedAttempt",
    "SimulatedImageRequest",
    "SimulatedProvider",
    "SimulationResult",
    "SimulationRun",
]

_IMAGE: Final = ProviderImage(b"", "image/png")
_BILLED: Final = frozenset({None, Reason.TIMEOUT, Reason.CANCELLED})
_USD_PER_TOKEN = 30e-6
"""The model table's price per token, by which a simulated cost is converted to tokens."""


class SimulatedAttempt(NamedTuple):
    """One request that was sent."""

    call: int
    route: int
    at: float
    seconds: float
    """Seconds until it ended or was abandoned."""
    reason: Reason | None
    """None if it delivered an image; CANCELLED if another request of the call did before."""
    cost_usd: float
    """Dollars that were billed, or probably billed."""
    seen: bool
    """Whether its outcome is based on recorded requests; False if it is an assumption."""


class Change(NamedTuple):
    """One change of a route's breaker."""

    at: float
    route: int
    state: BreakerState


@dataclass(slots=True)
class SimulationResult:
    """The results of all calls of a run."""

    routes: tuple[str, ...]
    started: array[float] = field(default_factory=lambda: array("d"))
    """Start of each call, in seconds since the start of the run."""
    seconds: array[float] = field(default_factory=lambda: array("d"))
    """Duration of each call, in the same order."""
    served: array[int] = field(default_factory=lambda: array("b"))
    """Index of the route that served each call; -1 if it failed."""
    sent: list[SimulatedAttempt] = field(default_factory=list)
    """Requests in the order in which they ended; a call may have two at a time, and one that ends
    after the call."""
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True)
class SimulatedImageRequest(ImageRequest):
    """A request with the number of its call, and what was sent to each route."""

    call: int = 0
    asked: dict[int, list[float]] = field(default_factory=dict)
    """The times of its requests to each route."""
    met: dict[int, SimulatedOutcome] = field(default_factory=dict)
    """The outcome of the latest request to each route, if it is awaited."""


class SimulationRun:
    """An outcome model, and the requests that were sent to it."""

    def __init__(self, truth: OutcomeModel, played: SimulationResult, seed: int) -> None:
        self._truth = truth
        self._sent = played.sent
        self._seed = seed
        self._routes = {name: index for index, name in enumerate(played.routes)}

    def outcome_for(
        self, call: int, route: int, at: float, before: Sequence[float]
    ) -> SimulatedOutcome:
        """Return the outcome of a request at ``at``, after the call's earlier ones to the route."""
        coin = DeterministicRng(self._seed, call, route, len(before))
        return self._truth.outcome_for(
            SimulatedRequest(route, at, coin, before[-1] if before else None)
        )

    def record(
        self,
        call: int,
        route: int,
        at: float,
        seconds: float,
        reason: Reason | None,
        met: SimulatedOutcome,
    ) -> None:
        """Record a request. An abandoned request is billed like one with a response."""
        billed = reason in _BILLED
        cost = met.cost_usd if billed else 0.0
        self._sent.append(SimulatedAttempt(call, route, at, seconds, reason, cost, met.seen))

    def record_attempt(self, request: SimulatedImageRequest, attempt: Attempt) -> None:
        """Record a request as the pipeline records it: when it ends, for whatever cause."""
        route = self._routes[f"{attempt.provider}:{attempt.model}"]
        met = request.met.pop(route, None)
        if met is None:
            return  # the outcome model has raised an error, which ends the run
        # No response came until the call's deadline: it may have hung as well.
        late = attempt.reason is Reason.DEADLINE
        reason = Reason.TIMEOUT if late else attempt.reason
        at = request.asked[route][-1]
        self.record(request.call, route, at, attempt.latency_s, reason, met)

    async def answer(
        self, request: SimulatedImageRequest, provider: str, model: str
    ) -> ProviderResult:
        """Respond to one request, or fail it, after its latency."""
        loop = asyncio.get_running_loop()
        route = self._routes[f"{provider}:{model}"]
        at = loop.time()
        before = request.asked.setdefault(route, [])
        met = self.outcome_for(request.call, route, at, before)
        before.append(at)
        request.met[route] = met
        if math.isinf(met.latency):
            await loop.create_future()
        await asyncio.sleep(met.latency)
        if (reason := met.reason) is not None:
            raise provider_failure(
                reason,
                provider=provider,
                model=model,
                retry_after=met.retry_after,
                account_wide=reason is Reason.UNAUTHENTICATED,
            )
        tokens = round(met.cost_usd / _USD_PER_TOKEN)
        usage = TokenUsage(input_tokens=0, output_tokens=tokens)
        return ProviderResult((_IMAGE,), model, usage)


class SimulatedProvider:
    """A provider that responds by an outcome model."""

    def __init__(self, name: str, world: SimulationRun) -> None:
        self.name = name
        self._world = world

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        """Respond to one request."""
        if not isinstance(request, SimulatedImageRequest):
            raise TypeError("a simulated provider accepts only simulated requests")
        return await self._world.answer(request, self.name, model)

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""
