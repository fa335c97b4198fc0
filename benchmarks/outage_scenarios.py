"""The outages in which designs are compared, on virtual time.

It needs only Python and this repository, so that other libraries can be measured in environments of
their own. Every design gets the same callers and the same nine variants of each outage; a request
of a call has the same outcome under every design. An outage of half an hour lasts 18 to 42 minutes
in the variants, because the phase of a single open period would decide the recovery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf, nan
from statistics import fmean
from typing import Any

from resilient_imagen.effective_settings import settings_from
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

SEEDS = (1, 2, 3, 4, 5, 6, 7, 8, 9)
GOOGLE, OPENAI = 0, 1
LIMIT = 60.0
"""Time limit in seconds of a request to Google, for designs that have one."""
NO_LIMIT = 600.0
"""Seconds after which a request without a limit counts as lost; OpenAI's requests have none."""

# Latencies of 2026 for 1K images: gemini-3-pro-image 16 to 23 s, tail 60; GPT Image at medium
# quality 23 s on average (one measurement; the distribution here is wider).
SERVICES = {
    "google": Service(latency=LatencyDistribution(19.0, 35.0)),
    "openai": Service(latency=LatencyDistribution(21.0, 32.0)),
}
MINUTE, HOUR = 60.0, 3600.0
OVERLOAD = Outage(start=30 * MINUTE, duration=30 * MINUTE, latency=1.0)
MINUTES = (18, 21, 24, 27, 30, 33, 36, 39, 42)
"""Durations of this outage, by seed."""
MIXED_ERRORS = (
    SimulatedOutcome(Reason.RATE_LIMITED, 0.4),  # 429, without a hint
    SimulatedOutcome(Reason.OVERLOADED, 10.0),  # 499
    SimulatedOutcome(Reason.TIMEOUT, 40.0),  # 504
)


@dataclass(frozen=True)
class Case:
    """A scenario, and the limits that a design has to keep."""

    title: str
    scenario: Scenario
    slots: int = 16
    """Requests in flight per provider."""
    per_minute: float = 20.0
    """Images a minute per provider."""
    mixed_errors: bool = False
    """Whether requests fail with the three outcomes of MIXED_ERRORS."""

    def of(self, seed: int) -> Case:
        """Return the variant for a seed."""
        seconds = MINUTES[(seed - 1) % len(MINUTES)] * MINUTE
        outages = tuple(
            replace(outage, duration=seconds) if outage.duration == OVERLOAD.duration else outage
            for outage in self.scenario.troubles
        )
        return replace(self, scenario=replace(self.scenario, troubles=outages))

    @property
    def outcomes(self) -> ScenarioOutcomes:
        """The outcome model."""
        kind = MixedErrors if self.mixed_errors else ScenarioOutcomes
        return kind(self.scenario, settings_from({}))


class MixedErrors(ScenarioOutcomes):
    """An outcome model in which one overload fails with different errors."""

    def outcome_for(self, ask: SimulatedRequest) -> SimulatedOutcome:
        """Return the outcome of the scenario, with a failure replaced by one of three."""
        outcome = super().outcome_for(ask)
        if outcome.reason is None:
            return outcome
        return MIXED_ERRORS[int(ask.coin.unit(99) * len(MIXED_ERRORS))]


def scenario(*outages: Outage, hours: float = 1.5, per_minute: float = 10.0) -> Scenario:
    """Return evenly spaced calls and these outages."""
    traffic = Traffic(per_minute=per_minute, duration=hours * HOUR, spacing="even")
    return Scenario(traffic=traffic, services=SERVICES, troubles=outages)


DEFAULT = Case(
    "18 to 42 minutes of overload, default limits (4 slots, 10 a minute)",
    scenario(OVERLOAD, per_minute=8.0),
    slots=4,
    per_minute=10.0,
)

CASES = (
    Case("18 to 42 minutes of overload", scenario(OVERLOAD)),
    DEFAULT,
    Case("6 hours of overload", scenario(replace(OVERLOAD, duration=6 * HOUR), hours=7)),
    Case(
        "12 overloads of 5 minutes in 6 hours",
        scenario(*waves(replace(OVERLOAD, start=900, duration=300), every=1800, times=12), hours=6),
    ),
    Case(
        "20 minutes of overload, then 40 in which half of the requests fail",
        scenario(
            replace(OVERLOAD, duration=20 * MINUTE),
            replace(OVERLOAD, start=50 * MINUTE, duration=40 * MINUTE, share=0.5),
            hours=2,
        ),
    ),
    Case(
        "18 to 42 minutes in which images take 2 to 4 minutes",
        scenario(replace(OVERLOAD, share=0.0, slower=9.5)),
    ),
    Case("18 to 42 minutes of 429, 499 and 504 in turn", scenario(OVERLOAD), mixed_errors=True),
    Case(
        "an overload that grows for 50 minutes, and ends after 60",
        scenario(replace(OVERLOAD, duration=60 * MINUTE, ramp=50 * MINUTE), hours=4),
    ),
    Case(
        "18 to 42 minutes without any response",
        scenario(replace(OVERLOAD, reason=Reason.TIMEOUT)),
    ),
)
"""Outages that were reported of gemini-3-pro-image; 10 images a minute and limits that they do not
reach (16 slots, 20 a minute), except in DEFAULT."""


# -- the result of a design -----------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """One caller's image."""

    asked: float
    """Loop time of the call."""
    seconds: float
    """Duration of the call."""
    route: int
    latency: float
    """Duration of the request that brought the image."""

    @property
    def added(self) -> float:
        """Seconds of the call beside that request."""
        return self.seconds - self.latency


@dataclass
class Outcome:
    """The results of all calls of a design."""

    images: list[Image] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    """Start of each call without an image."""
    wasted: list[tuple[float, float]] = field(default_factory=list)
    """Start and seconds of each request that brought its caller nothing: failed, cancelled, or
    with an image that came too late."""


Served = tuple[int, float]
"""The route that brought an image, and the duration of that request."""
Design = Callable[[int], Awaitable[Served | None]]
"""Serves a call; returns None without an image."""


class OutageScenario:
    """Responds to the requests of a design."""

    def __init__(self, case: Case, seed: int) -> None:
        self._outcomes = case.outcomes
        self.seed = seed
        self.outcome = Outcome()

    async def send(
        self, call: int, route: int, number: int = 0, limit: float = LIMIT
    ) -> SimulatedOutcome:
        """Send one request, and wait for its response; a request to Google has a time limit."""
        at, coin = now(), DeterministicRng(self.seed, call, route, number)
        outcome = self._outcomes.outcome_for(SimulatedRequest(route, at, coin))
        limit = limit if route == GOOGLE else NO_LIMIT
        if outcome.latency > limit:
            outcome = outcome._replace(reason=Reason.TIMEOUT, latency=limit)
        await asyncio.sleep(outcome.latency)
        if outcome.reason is not None:
            self.outcome.wasted.append((at, outcome.latency))
        return outcome

    async def serve(self, design: Design, call: int) -> None:
        """Serve one caller by a design, and record the result."""
        asked = now()
        served = await design(call)
        if served is None:
            self.outcome.lost.append(asked)
        else:
            route, latency = served
            self.outcome.images.append(Image(asked, now() - asked, route, latency))


def run_outage(
    design: Callable[[OutageScenario, Case], Design],
    case: Case,
    seed: int,
    run: Callable[[Coroutine[Any, Any, None]], None] = run_virtual,
) -> Outcome:
    """Send the case's callers through a design; ``run`` runs it on an event loop."""
    case = case.of(seed)
    world = OutageScenario(case, seed)

    async def main() -> None:
        made = design(world, case)
        async with asyncio.TaskGroup() as calls:
            for call, at in enumerate(case.scenario.traffic.arrivals(seed)):
                await asyncio.sleep(max(0.0, at - now()))
                calls.create_task(world.serve(made, call))

    run(main())
    return world.outcome


def now() -> float:
    return asyncio.get_running_loop().time()


# -- figures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OutageFigures:
    """One design in one case; the first three are about calls that start in an outage."""

    served: float
    """Share of the callers that got an image."""
    mean: float
    """Seconds to it."""
    added: float
    """Of these, seconds beside the request that brought it."""
    wasted: float
    """Wasted requests of the whole run."""
    recovery: float
    """Seconds from an outage's end until a request is sent to Google that serves its caller."""


def figures(case: Case, outcome: Outcome, seed: int) -> OutageFigures:
    """Return the figures of one run."""
    spans = case.of(seed).outcomes.incidents()

    def in_outage(asked: float) -> bool:
        return any(span.start <= asked < span.end for span in spans)

    served = [image for image in outcome.images if in_outage(image.asked)]
    lost = sum(map(in_outage, outcome.lost))
    sent = sorted(image.asked + image.added for image in outcome.images if image.route == GOOGLE)
    back = [next((at for at in sent if at >= span.end - 1e-6), inf) - span.end for span in spans]
    return OutageFigures(
        len(served) / (len(served) + lost),
        fmean(image.seconds for image in served) if served else nan,
        fmean(image.added for image in served) if served else nan,
        len(outcome.wasted),
        fmean(back),
    )


def means(
    case: Case, run: Callable[[Case, int], Outcome], seeds: Sequence[int] = SEEDS
) -> OutageFigures:
    """Return the means of a design's figures over the variants of a case."""
    found = [figures(case, run(case, seed), seed) for seed in seeds]
    return OutageFigures(
        *(fmean(getattr(one, each.name) for one in found) for each in fields(OutageFigures))
    )
