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
    Served,
    means,
    now,
    run_outage,
)

from resilient_imagen.reasons import Reason
from resilient_imagen.settings import Settings
from resilient_imagen.tuning.engine import run_simulation
from resilient_imagen.tuning.outcome_model import SimulatedOutcome


def served(route: int, outcome: SimulatedOutcome) -> Served | None:
    return None if outcome.reason else (route, outcome.latency)


def bare(world: OutageScenario, _: Case) -> Design:
    """One request."""

    async def image(call: int) -> Served | None:
        return served(GOOGLE, await world.send(call, GOOGLE, limit=NO_LIMIT))

    return image


def retries(world: OutageScenario, case: Case) -> Design:
    """Three requests in a slot, then the other vendor."""
    slots, turn, gap = asyncio.Semaphore(case.slots), asyncio.Lock(), 60.0 / case.per_minute
    chance, last = random.Random(world.seed), -gap

    async def image(call: int) -> Served | None:
        nonlocal last
        async with slots:
            async with turn:
                await asyncio.sleep(max(0.0, last + gap - now()))
                last = now()
            for number in range(3):
                outcome = await world.send(call, GOOGLE, number)
                if outcome.reason is None:
                    return served(GOOGLE, outcome)
                if outcome.reason is not Reason.TIMEOUT and number < 2:
                    await asyncio.sleep(max(1.0, 5.0 * 2**number * chance.uniform(0.7, 1.3)))
            return served(OPENAI, await world.send(call, OPENAI))

    return image


def cooldown(world: OutageScenario, _: Case) -> Design:
    """Quick retries, then exclude the failing route for a while; no probe."""
    chance, failed, excluded_until = random.Random(world.seed), deque[float](maxlen=3), 0.0

    async def image(call: int) -> Served | None:
        nonlocal excluded_until
        for number in range(3):
            if now() < excluded_until:
                break
            outcome = await world.send(call, GOOGLE, number)
            if outcome.reason is None:
                return served(GOOGLE, outcome)
            failed.append(now())
            if len(failed) == 3 and failed[0] >= now() - 60.0:
                excluded_until = now() + 60.0
            await asyncio.sleep(min(0.5 * 2**number, 8.0) + chance.uniform(0.0, 0.75))
        return served(OPENAI, await world.send(call, OPENAI))

    return image


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


DESIGNS: dict[str, Callable[[Case, int], Outcome]] = {
    "bare": partial(run_outage, bare),
    "retries": partial(run_outage, retries),
    "cooldown": partial(run_outage, cooldown),
    "ours": ours,
}


def measure(case: Case, seeds: Sequence[int] = SEEDS) -> dict[str, OutageFigures]:
    """Return the means of every design's figures over the variants of a case."""
    return {name: means(case, run, seeds) for name, run in DESIGNS.items()}
