"""Designs in the outages of ``outage_scenarios``: three alternatives, and this library.

- bare: Google's SDK alone; one request, without a time limit.
- retries: up to three requests to Google, 5 and 10 s apart (at once after a timeout), then OpenAI,
  all of it in one concurrency slot. Its images a minute space the calls, not their retries. It
  recognizes every failure.
- cooldown: a router's. Three requests, 0.5 and 1 s apart, and one more pause after the last; three
  failures within a minute exclude Google for a minute, after which every call asks it again. It has
  neither slots nor images a minute.
- ours: the production pipeline with its default settings, over simulated providers.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from outage_scenarios import (
    GOOGLE,
    NO_LIMIT,
    OPENAI,
    SEEDS,
    Case,
    Design,
    Image,
    OutageFigures,
    OutageScenario,
    Outcome,
    means,
    now,
    run_outage,
)

from resilient_imagen.reasons import Reason
from resilient_imagen.settings import Settings
from resilient_imagen.tuning.engine import run_simulation
from resilient_imagen.tuning.outcome_model import SimulatedOutcome


class Bare:
    """One request."""

    def __init__(self, world: OutageScenario, case: Case) -> None:
        del case
        self._world = world

    async def image(self, call: int) -> Image | None:
        """Serve one caller."""
        asked = now()
        return delivered(asked, GOOGLE, await self._world.send(call, GOOGLE, limit=NO_LIMIT))


class Retries:
    """Three requests in a slot, then the other vendor."""

    def __init__(self, world: OutageScenario, case: Case) -> None:
        self._world = world
        self._slots = asyncio.Semaphore(case.slots)
        self._turn = asyncio.Lock()
        self._gap = 60.0 / case.per_minute
        self._last = -self._gap
        self._chance = random.Random(world.seed)

    async def image(self, call: int) -> Image | None:
        """Serve one caller."""
        asked = now()
        async with self._slots:
            async with self._turn:
                await asyncio.sleep(max(0.0, self._last + self._gap - now()))
                self._last = now()
            for number in range(3):
                outcome = await self._world.send(call, GOOGLE, number)
                if outcome.reason is None:
                    return delivered(asked, GOOGLE, outcome)
                if outcome.reason is not Reason.TIMEOUT and number < 2:
                    pause = 5.0 * 2**number
                    await asyncio.sleep(max(1.0, pause * self._chance.uniform(0.7, 1.3)))
            return delivered(asked, OPENAI, await self._world.send(call, OPENAI))


class Cooldown:
    """Quick retries, then exclude the failing route for a while; no probe."""

    ALLOWED, WITHIN, SECONDS = 2, 60.0, 60.0

    def __init__(self, world: OutageScenario, case: Case) -> None:
        del case
        self._world = world
        self._failed: deque[float] = deque()
        self._excluded_until = 0.0
        self._chance = random.Random(world.seed)

    async def image(self, call: int) -> Image | None:
        """Serve one caller."""
        asked = now()
        for number in range(3):
            if now() < self._excluded_until:
                break
            outcome = await self._world.send(call, GOOGLE, number)
            if outcome.reason is None:
                return delivered(asked, GOOGLE, outcome)
            self._count_failure()
            await asyncio.sleep(min(0.5 * 2**number, 8.0) + self._chance.uniform(0.0, 0.75))
        return delivered(asked, OPENAI, await self._world.send(call, OPENAI))

    def _count_failure(self) -> None:
        self._failed.append(now())
        while self._failed[0] < now() - self.WITHIN:
            self._failed.popleft()
        if len(self._failed) > self.ALLOWED:
            self._excluded_until = now() + self.SECONDS


def delivered(asked: float, route: int, outcome: SimulatedOutcome) -> Image | None:
    """Return the image of a request; None if it failed."""
    return None if outcome.reason else Image(asked, now() - asked, route, outcome.latency)


def ours(case: Case, seed: int) -> Outcome:
    """Send the case's callers through the production pipeline."""
    case = case.of(seed)
    settings = Settings(max_concurrent=case.slots, ipm=case.per_minute)
    arrivals = case.scenario.traffic.arrivals(seed)
    run = run_simulation(settings, case.outcomes, arrivals, seed=seed)
    outcome, latency = Outcome(), {}
    for sent in run.sent:
        if sent.reason is None and sent.route == run.served[sent.call]:
            latency[sent.call] = sent.seconds
        else:
            outcome.wasted.append((sent.at, sent.seconds))
    for call, route in enumerate(run.served):
        if route < 0:
            outcome.lost.append(run.started[call])
        else:
            outcome.images.append(Image(run.started[call], run.seconds[call], route, latency[call]))
    return outcome


def simulated(design: Callable[[OutageScenario, Case], Design], case: Case, seed: int) -> Outcome:
    return run_outage(case, design, seed)


DESIGNS: dict[str, Callable[[Case, int], Outcome]] = {
    "bare": partial(simulated, Bare),
    "retries": partial(simulated, Retries),
    "cooldown": partial(simulated, Cooldown),
    "ours": ours,
}


def measure(case: Case, seeds: Sequence[int] = SEEDS) -> dict[str, OutageFigures]:
    """Return the means of every design's figures over the variants of a case."""
    return {name: means(case, run, seeds) for name, run in DESIGNS.items()}
