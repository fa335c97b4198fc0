"""Stand-ins for the providers, answering what a truth says, and the book of all that was sent."""

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
_USD_PER_TOKEN = 30e-6
"""The model table's price where tokens are charged: what is recorded then costs what was met."""


class SimulatedAttempt(NamedTuple):
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
    """False when its outcome rests on an assumption."""


class Change(NamedTuple):
    """One change of a route's breaker."""

    at: float
    route: int
    state: BreakerState


@dataclass(slots=True)
class SimulationResult:
    """What became of every call."""

    routes: tuple[str, ...]
    started: array[float] = field(default_factory=lambda: array("d"))
    """Seconds since the start, one a call."""
    seconds: array[float] = field(default_factory=lambda: array("d"))
    """How long each call took, in the same order."""
    served: array[int] = field(default_factory=lambda: array("b"))
    """Index of the route that served each call, -1 for none."""
    sent: list[SimulatedAttempt] = field(default_factory=list)
    """In the order they ended."""
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True)
class SimulatedImageRequest(ImageRequest):
    """A request that knows whose it is, and when each route was asked for it."""

    call: int = 0
    asked: dict[int, list[float]] = field(default_factory=dict)


class SimulationRun:
    """The truth, and what was sent into it."""

    def __init__(self, truth: OutcomeModel, played: SimulationResult, seed: int) -> None:
        self._truth = truth
        self._sent = played.sent
        self._seed = seed
        self._routes = {name: index for index, name in enumerate(played.routes)}

    def outcome_for(
        self, call: int, route: int, at: float, before: Sequence[float]
    ) -> SimulatedOutcome:
        """What a request meets at ``at``, after the call's earlier ones to the same route."""
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
        """Note what was sent. A request that was given up is billed as one that was answered."""
        billed = reason is None or reason is Reason.TIMEOUT
        cost = met.cost_usd if billed else 0.0
        self._sent.append(SimulatedAttempt(call, route, at, seconds, reason, cost, met.seen))

    async def answer(
        self, request: SimulatedImageRequest, provider: str, model: str
    ) -> ProviderResult:
        """Serve or fail one request, in its time."""
        loop = asyncio.get_running_loop()
        route = self._routes[f"{provider}:{model}"]
        at = loop.time()
        before = request.asked.setdefault(route, [])
        met = self.outcome_for(request.call, route, at, before)
        before.append(at)
        reason: Reason | None = Reason.TIMEOUT  # unless an answer comes in time
        try:
            if math.isinf(met.latency):
                await loop.create_future()
            await asyncio.sleep(met.latency)
            reason = met.reason
        finally:
            self.record(request.call, route, at, loop.time() - at, reason, met)
        if reason is not None:
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
    """A provider that answers what the world says."""

    def __init__(self, name: str, world: SimulationRun) -> None:
        self.name = name
        self._world = world

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        """Answer one request."""
        if not isinstance(request, SimulatedImageRequest):
            raise TypeError("a stand-in answers numbered requests only")
        return await self._world.answer(request, self.name, model)

    async def aclose(self) -> None:
        """Nothing is open."""
