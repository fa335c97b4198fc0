"""Simulation run: simulated providers that respond by an outcome model, and their results."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.cost import USUAL_TOKENS
from resilient_imagen.errors import provider_failure
from resilient_imagen.providers.base import ProviderImage, ProviderResult
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ImageRequest
from resilient_imagen.tuning.outcome_model import DeterministicRng, SimulatedRequest

if TYPE_CHECKING:
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
    """Requests, call by call in the order in which the calls ended; a request that ended after its
    call is in the list by its own end."""
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True)
class SimulatedImageRequest(ImageRequest):
    """A request with the number of its call, and the requests that were sent for it."""

    call: int = 0
    sent: dict[int, list[tuple[float, SimulatedOutcome]]] = field(default_factory=dict)
    """Loop time and outcome of each request, by route."""
    recorded: Counter[int] = field(default_factory=Counter)
    """Number of requests that are in the result, by route."""

    def __post_init__(self) -> None:
        """Check nothing: the fields are constants, and a sweep makes millions of requests."""


class SimulationRun:
    """One run: the outcome model, the result so far, and the seed of all random choices."""

    def __init__(self, outcomes: OutcomeModel, result: SimulationResult, seed: int) -> None:
        self.seed: int = seed
        self._outcomes = outcomes
        self._result = result
        self._routes = {name: index for index, name in enumerate(result.routes)}

    def record_start(self, at: float) -> None:
        """Record a call that starts."""
        self._result.started.append(at)
        self._result.seconds.append(0.0)
        self._result.served.append(-1)

    def record_end(self, call: int, seconds: float, served: int) -> None:
        """Record the end of a call."""
        self._result.seconds[call] = seconds
        self._result.served[call] = served

    def record_change(self, change: Change) -> None:
        """Record a change of a breaker."""
        self._result.changes.append(change)

    def record_attempt(self, request: SimulatedImageRequest, attempt: Attempt) -> None:
        """Record a request that has ended. An abandoned one is billed like one with a response.

        The requests of a call to one route must be recorded in the order in which they were sent.
        """
        route = self._routes[f"{attempt.provider}:{attempt.model}"]
        at, outcome = request.sent[route][request.recorded[route]]
        request.recorded[route] += 1
        # No response came until the call's deadline: it may have hung as well.
        late = attempt.reason is Reason.DEADLINE
        reason = Reason.TIMEOUT if late else attempt.reason
        cost = outcome.cost_usd if reason in _BILLED else 0.0
        self._result.sent.append(
            SimulatedAttempt(request.call, route, at, attempt.latency_s, reason, cost, outcome.seen)
        )

    async def respond(
        self, request: SimulatedImageRequest, provider: str, model: str
    ) -> ProviderResult:
        """Respond to one request, or fail it, after its latency."""
        loop = asyncio.get_running_loop()
        route, at = self._routes[f"{provider}:{model}"], loop.time()
        before = request.sent.setdefault(route, [])
        coin = DeterministicRng(self.seed, request.call, route, len(before))
        outcome = self._outcomes.outcome_for(
            SimulatedRequest(route, at, coin, before[-1][0] if before else None)
        )
        before.append((at, outcome))
        if math.isinf(outcome.latency):
            await loop.create_future()
        await asyncio.sleep(outcome.latency)
        if (reason := outcome.reason) is not None:
            raise provider_failure(
                reason,
                provider=provider,
                model=model,
                retry_after=outcome.retry_after,
                account_wide=reason is Reason.UNAUTHENTICATED,
            )
        return ProviderResult((_IMAGE,), model, USUAL_TOKENS)


class SimulatedProvider:
    """A provider that responds by an outcome model."""

    def __init__(self, name: str, run: SimulationRun) -> None:
        self.name = name
        self._run = run

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        """Respond to one request."""
        if not isinstance(request, SimulatedImageRequest):
            raise TypeError("a simulated provider accepts only simulated requests")
        return await self._run.respond(request, self.name, model)

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""
