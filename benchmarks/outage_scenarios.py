"""The outages that designs are measured in, on virtual time.

Needs nothing but Python and this repository, so that other libraries can be measured in
environments of their own. The same callers meet the same worlds, nine of each: request for
request, the same chance decides under every design. An outage of half an hour lasts 18 to 42
minutes in them, because after a single outage the phase of the open period decides the recovery.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, fields, replace
from math import inf, nan
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, Any, Protocol

from resilient_imagen.reasons import Reason
from resilient_imagen.tuning.outcome_model import (
    DeterministicRng,
    SimulatedOutcome,
    SimulatedRequest,
)
from resilient_imagen.tuning.scenario import (
    LatencyDistribution,
    Outage,
    Scenario,
    ScenarioOutcomes,
    Service,
    Traffic,
    waves,
)
from resilient_imagen.virtualtime import run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

SEEDS = (1, 2, 3, 4, 5, 6, 7, 8, 9)
GOOGLE, OPENAI = 0, 1
LIMIT = 60.0
"""Seconds that a design which has a limit gives a request to Google."""
NO_LIMIT = 600.0
"""Seconds after which whoever has none, or waits for OpenAI, is taken for lost."""

# Latencies: facts of 2026 for 1K pictures of gemini-3-pro-image (16 to 23 s, tail 60), and for
# GPT Image at medium quality (mean 23 s, tail 26 in one measurement; wider here).
SERVICES = {
    "google": Service(latency=LatencyDistribution(19.0, 35.0), cost_usd=0.134),
    "openai": Service(latency=LatencyDistribution(21.0, 32.0), cost_usd=0.05),
}
MINUTE, HOUR = 60.0, 3600.0
OVERLOAD = Outage(start=30 * MINUTE, duration=30 * MINUTE, latency=1.0)
MINUTES = (18, 21, 24, 27, 30, 33, 36, 39, 42)
"""The durations of this outage, by seed."""
GROWING = replace(OVERLOAD, duration=60 * MINUTE, ramp=50 * MINUTE)
BY_TURNS = (
    SimulatedOutcome(Reason.RATE_LIMITED, 0.4),  # 429, without a hint
    SimulatedOutcome(Reason.OVERLOADED, 10.0),  # 499
    SimulatedOutcome(Reason.TIMEOUT, 40.0),  # 504
)


@dataclass(frozen=True)
class Case:
    """A world, and the limits that a design has to keep."""

    title: str
    scenario: Scenario
    slots: int = 16
    """Requests in flight per provider."""
    per_minute: float = 20.0
    """Images a minute per provider."""
    by_turns: bool = False
    """Whether what fails does so in three ways."""

    def of(self, seed: int) -> Case:
        """Return the case with the durations that belong to a seed."""
        seconds = MINUTES[(seed - 1) % len(MINUTES)] * MINUTE
        troubles = tuple(
            replace(trouble, duration=seconds) if trouble.duration == OVERLOAD.duration else trouble
            for trouble in self.scenario.troubles
        )
        return replace(self, scenario=replace(self.scenario, troubles=troubles))

    @property
    def truth(self) -> ScenarioOutcomes:
        """What requests meet."""
        kind = ByTurns if self.by_turns else ScenarioOutcomes
        return kind(self.scenario, ["google", "openai"])


class ByTurns(ScenarioOutcomes):
    """The same model answers one overload with different errors."""

    def outcome_for(self, ask: SimulatedRequest) -> SimulatedOutcome:
        """Return the outcome of the scenario, a failure replaced by one of three."""
        met = super().outcome_for(ask)
        return met if met.reason is None else BY_TURNS[int(ask.coin.unit(99) * len(BY_TURNS))]


def world(*troubles: Outage, hours: float = 1.5, per_minute: float = 10.0) -> Scenario:
    """Callers that come evenly, and what they come into."""
    traffic = Traffic(per_minute=per_minute, duration=hours * HOUR, spacing="even")
    return Scenario(traffic=traffic, services=SERVICES, troubles=troubles)


DEFAULT = Case(
    "18 to 42 minutes of overload, default limits (4 slots, 10 a minute)",
    world(OVERLOAD, per_minute=8.0),
    slots=4,
    per_minute=10.0,
)
"""As everything is when nothing is set."""

CASES = (
    Case("18 to 42 minutes of overload", world(OVERLOAD)),
    DEFAULT,
    Case("6 hours of overload", world(replace(OVERLOAD, duration=6 * HOUR), hours=7)),
    Case(
        "12 overloads of 5 minutes in 6 hours",
        world(*waves(replace(OVERLOAD, start=900, duration=300), every=1800, times=12), hours=6),
    ),
    Case(
        "20 minutes of overload, then 40 in which half of the requests fail",
        world(
            replace(OVERLOAD, duration=20 * MINUTE),
            replace(OVERLOAD, start=50 * MINUTE, duration=40 * MINUTE, share=0.5),
            hours=2,
        ),
    ),
    Case(
        "18 to 42 minutes in which pictures take 2 to 4 minutes",
        world(replace(OVERLOAD, share=0.0, slower=9.5)),
    ),
    Case("18 to 42 minutes of 429, 499 and 504 by turns", world(OVERLOAD), by_turns=True),
    Case("an overload that grows for 50 minutes, and ends after 60", world(GROWING, hours=4)),
    Case("18 to 42 minutes without any answer", world(replace(OVERLOAD, reason=Reason.TIMEOUT))),
)
"""What has been reported of gemini-3-pro-image; 10 images a minute and limits out of the way (16
slots, 20 a minute), but for one."""


# -- what a design leaves behind ------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """One caller's image."""

    asked: float
    seconds: float
    route: int
    making: float
    """Seconds that the request which brought it took."""

    @property
    def added(self) -> float:
        """Seconds on top of that."""
        return self.seconds - self.making

    @property
    def begun(self) -> float:
        """When that request was sent."""
        return self.asked + self.added


@dataclass
class Outcome:
    """The images, the start of each call without one, the wasted requests and the bill."""

    images: list[Image] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    wasted: list[tuple[float, float]] = field(default_factory=list)
    """Start and seconds of each request that brought its caller nothing: failed, cancelled, or
    with an image that came too late."""
    usd: float = 0.0
    """Dollars for all requests; one that was given up is billed like one with a response."""


class Design(Protocol):
    """One way from a caller to an image."""

    async def image(self, call: int) -> Image | None:
        """Serve one caller; None when there is no image."""
        ...


class OutageScenario:
    """Answers a design."""

    def __init__(self, case: Case, seed: int) -> None:
        self._truth = case.truth
        self.seed = seed
        self.outcome = Outcome()

    async def ask(
        self, call: int, route: int, number: int = 0, limit: float = LIMIT
    ) -> SimulatedOutcome:
        """Send one request; its seconds pass. Google's are given up at the limit."""
        at = now()
        met = self._truth.outcome_for(
            SimulatedRequest(route, at, DeterministicRng(self.seed, call, route, number))
        )
        limit = limit if route == GOOGLE else NO_LIMIT
        if met.latency > limit:
            met = met._replace(reason=Reason.TIMEOUT, latency=limit)
        await asyncio.sleep(met.latency)
        self.outcome.usd += met.cost_usd
        if met.reason is not None:
            self.outcome.wasted.append((at, met.latency))
        return met


def run_outage(
    case: Case,
    design: Callable[[OutageScenario, Case], Design],
    seed: int,
    run: Callable[[Coroutine[Any, Any, None]], None] = run_virtual,
) -> Outcome:
    """Send the case's callers through a design; ``run`` is the loop, where it needs another."""
    case = case.of(seed)
    world = OutageScenario(case, seed)

    async def one(design: Design, call: int) -> None:
        asked = now()
        image = await design.image(call)
        if image is None:
            world.outcome.lost.append(asked)
        else:
            world.outcome.images.append(image)

    async def main() -> None:
        made = design(world, case)
        tasks = []
        for call, at in enumerate(case.scenario.traffic.arrivals(seed)):
            await asyncio.sleep(max(0.0, at - now()))
            tasks.append(asyncio.ensure_future(one(made, call)))
        await asyncio.gather(*tasks)

    run(main())
    return world.outcome


def now() -> float:
    return asyncio.get_running_loop().time()


# -- what it comes to ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """One design in one case; ``served`` to ``added`` are about calls that start in an outage."""

    served: float
    """Share of the callers that got an image."""
    mean: float
    """Seconds to it."""
    p95: float
    added: float
    total_mean: float
    """Seconds to the image, of all calls of the run."""
    wasted: float
    """Wasted requests."""
    wasted_seconds: float
    google: float
    """Share of all images that Google made."""
    recovery: float
    """Seconds from an outage's end until a request is sent to Google that serves its caller."""
    usd: float
    """Dollars per 100 images."""


def sums(case: Case, outcome: Outcome, seed: int) -> Sums:
    """Sum up one run."""
    case = case.of(seed)
    spans = case.truth.incidents()

    def hit(asked: float) -> bool:
        return any(span.start <= asked < span.end for span in spans)

    served = [image for image in outcome.images if hit(image.asked)]
    lost = sum(map(hit, outcome.lost))
    begun = sorted(image.begun for image in outcome.images if image.route == GOOGLE)
    back = [next((at for at in begun if at >= span.end - 1e-6), inf) - span.end for span in spans]
    times = [image.seconds for image in served]
    return Sums(
        len(served) / (len(served) + lost),
        fmean(times) if times else nan,
        quantiles(times, n=20)[-1] if len(times) > 1 else nan,
        fmean(image.added for image in served) if served else nan,
        fmean(image.seconds for image in outcome.images),
        len(outcome.wasted),
        sum(seconds for _, seconds in outcome.wasted),
        sum(image.route == GOOGLE for image in outcome.images) / len(outcome.images),
        fmean(back),
        100 * outcome.usd / len(outcome.images),
    )


def mean(found: Sequence[Sums]) -> Sums:
    """The mean of one design's figures in all its worlds."""
    return Sums(*(fmean(getattr(one, each.name) for one in found) for each in fields(Sums)))
