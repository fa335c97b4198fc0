"""Designs in outages that were reported of gemini-3-pro-image, on virtual time.

    python benchmarks/outage.py [VARIANTS]     # a table

Every design gets the same callers and the same nine variants of each outage; a request of a call
has the same outcome under every design.

- bare: Google's SDK alone; one request, without a time limit.
- retries: up to three requests to Google, 5 and 10 s apart (at once after a timeout), then OpenAI,
  all of it in one concurrency slot. Its images a minute space the calls, not their retries. It
  recognizes every failure.
- cooldown: a router's. Three requests, 0.5 and 1 s apart, and one more pause after the last; three
  failures within a minute exclude Google for a minute, after which every call asks it again. It has
  neither slots nor images a minute.
- ours: the production pipeline with its default settings, over simulated providers.
- other libraries: their own code, in the first outage (``peers.py``).
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, nan
from statistics import fmean
from typing import Any

from stopwatch import Figures, medians
from table import Rows, markdown, result_rows

from resilient_imagen.effective_settings import settings_from
from resilient_imagen.reasons import Reason
from resilient_imagen.tuning.engine import run_simulation
from resilient_imagen.tuning.outcome_model import DeterministicRng, SimulatedRequest
from resilient_imagen.tuning.scenario import (
    LatencyDistribution,
    Outage,
    Scenario,
    ScenarioOutcomes,
    Service,
    Traffic,
)
from resilient_imagen.tuning.simulation_run import SimulatedAttempt, SimulationResult
from resilient_imagen.virtualtime import run_virtual

GOOGLE, OPENAI, LOST = 0, 1, -1
SEEDS = range(1, 10)
"""The variants."""
LIMIT = 60.0
"""Time limit in seconds of a request to Google, for designs that have one."""
NO_LIMIT = 600.0
"""Seconds after which a request without a limit counts as lost; OpenAI's requests have none."""
ALL_SERVED = 0.995
"""Share of callers that counts as all of them."""

# Latencies of 2026 for 1K images: gemini-3-pro-image 16 to 23 s, tail 60; GPT Image at medium
# quality 23 s on average (one measurement; the distribution here is wider).
SERVICES = {
    "google": Service(latency=LatencyDistribution(19.0, 35.0)),
    "openai": Service(latency=LatencyDistribution(21.0, 32.0)),
}


# -- the outages -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Outages, the traffic meanwhile, and the limits that a design has to keep."""

    title: str
    outages: Callable[[float], list[Outage]]
    """Returns the outages from the minutes of a variant."""
    hours: float = 1.5
    calls: float = 10.0
    """Calls a minute."""
    slots: int = 16
    """Requests in flight per provider."""
    per_minute: float = 20.0
    """Images a minute per provider."""

    def scenario(self, seed: int) -> Scenario:
        """Return a variant.

        A long outage lasts 18 to 42 minutes, because the phase of a single open period would decide
        the recovery.
        """
        traffic = Traffic(per_minute=self.calls, duration=self.hours * 3600, spacing="even")
        outages = tuple(self.outages(15 + 3 * seed))
        return Scenario(traffic=traffic, services=SERVICES, outages=outages)

    def outcomes(self, seed: int) -> ScenarioOutcomes:
        """Return the outcome model of a variant."""
        return ScenarioOutcomes(self.scenario(seed), settings_from({}))

    def arrivals(self, seed: int) -> Iterator[float]:
        """Return the start of each call, in seconds."""
        return self.scenario(seed).traffic.arrivals(seed)


def overload(start: float, minutes: float, share: float = 1.0, slower: float = 1.0) -> Outage:
    """Return an outage from a minute on, in which requests fail after a second."""
    return Outage(start=start * 60, duration=minutes * 60, latency=1.0, share=share, slower=slower)


PLAIN = Case("18 to 42 minutes of overload", lambda minutes: [overload(30, minutes)])
DEFAULT = Case(
    "18 to 42 minutes of overload, default limits (4 slots, 10 a minute)",
    PLAIN.outages, calls=8, slots=4, per_minute=10,
)  # fmt: skip
CASES = (
    PLAIN,
    DEFAULT,
    Case(
        "12 overloads of 5 minutes in 6 hours",
        lambda _: [overload(15 + 30 * number, 5) for number in range(12)],
        hours=6,
    ),
    Case(
        "20 minutes of overload, then 40 in which half of the requests fail",
        lambda _: [overload(30, 20), overload(50, 40, share=0.5)],
        hours=2,
    ),
    Case(
        "18 to 42 minutes in which images take 2 to 4 minutes",
        lambda minutes: [overload(30, minutes, share=0.0, slower=9.5)],
    ),
)


# -- running a design ------------------------------------------------------------------------------


class Vendors:
    """Responds to the requests of a design, and records them."""

    def __init__(self, case: Case, seed: int) -> None:
        self.seed = seed
        self.result = SimulationResult(tuple(SERVICES))
        self._outcomes = case.outcomes(seed)
        self._numbers: Counter[tuple[int, int]] = Counter()

    async def send(self, call: int, route: int, limit: float = LIMIT) -> Reason | None:
        """Send one request, wait for its response, and return the reason of a failure."""
        at, number = now(), self._numbers[call, route]
        self._numbers[call, route] += 1
        coin = DeterministicRng(self.seed, call, route, number)
        reason, seconds, *_ = self._outcomes.outcome_for(SimulatedRequest(route, at, coin))
        limit = limit if route == GOOGLE else NO_LIMIT
        if seconds > limit:
            reason, seconds = Reason.TIMEOUT, limit
        await asyncio.sleep(seconds)
        sent = SimulatedAttempt(call, route, at, seconds, reason, cost_usd=0.0, seen=True)
        self.result.sent.append(sent)
        if reason is None:
            self.result.served[call] = route
        return reason


Serve = Callable[[int], Awaitable[None]]
"""Sends requests for a call until one brings an image, or gives up."""
Design = Callable[[Vendors, Case], Serve]


def run_design(
    design: Design,
    case: Case,
    seed: int,
    run: Callable[[Coroutine[Any, Any, None]], None] = run_virtual,
) -> SimulationResult:
    """Send the case's callers through a design; ``run`` runs it on an event loop."""
    vendors = Vendors(case, seed)
    result = vendors.result

    async def main() -> None:
        serve = design(vendors, case)

        async def caller(call: int) -> None:
            result.started.append(now())
            result.seconds.append(0.0)
            result.served.append(LOST)
            await serve(call)
            result.seconds[call] = now() - result.started[call]

        async with asyncio.TaskGroup() as callers:
            for call, at in enumerate(case.arrivals(seed)):
                await asyncio.sleep(max(0.0, at - now()))
                callers.create_task(caller(call))

    run(main())
    return result


def now() -> float:
    return asyncio.get_running_loop().time()


# -- the designs -----------------------------------------------------------------------------------


def bare(vendors: Vendors, _: Case) -> Serve:
    """One request."""

    async def serve(call: int) -> None:
        await vendors.send(call, GOOGLE, NO_LIMIT)

    return serve


def retries(vendors: Vendors, case: Case) -> Serve:
    """Three requests in a slot, then the other vendor."""
    slots, turn, gap = asyncio.Semaphore(case.slots), asyncio.Lock(), 60.0 / case.per_minute
    chance, last = random.Random(vendors.seed), -gap

    async def serve(call: int) -> None:
        nonlocal last
        async with slots:
            async with turn:
                await asyncio.sleep(max(0.0, last + gap - now()))
                last = now()
            for number in range(3):
                reason = await vendors.send(call, GOOGLE)
                if reason is None:
                    return
                if reason is not Reason.TIMEOUT and number < 2:
                    await asyncio.sleep(max(1.0, 5.0 * 2**number * chance.uniform(0.7, 1.3)))
            await vendors.send(call, OPENAI)

    return serve


def cooldown(vendors: Vendors, _: Case) -> Serve:
    """Quick retries, then exclude the failing route for a while; no probe."""
    chance, failed, excluded_until = random.Random(vendors.seed), deque[float](maxlen=3), 0.0

    async def serve(call: int) -> None:
        nonlocal excluded_until
        for number in range(3):
            if now() < excluded_until:
                break
            if await vendors.send(call, GOOGLE) is None:
                return
            failed.append(now())
            if len(failed) == 3 and failed[0] >= now() - 60.0:
                excluded_until = now() + 60.0
            await asyncio.sleep(0.5 * 2**number + chance.uniform(0.0, 0.75))
        await vendors.send(call, OPENAI)

    return serve


def ours(case: Case, seed: int) -> SimulationResult:
    """Send the case's callers through the production pipeline."""
    limits = {"max_concurrent": case.slots, "ipm": case.per_minute}
    settings = settings_from({}).model_copy(update=limits)
    return run_simulation(settings, case.outcomes(seed), case.arrivals(seed), seed=seed)


DESIGNS: dict[str, Callable[[Case, int], SimulationResult]] = {
    "bare": partial(run_design, bare),
    "retries": partial(run_design, retries),
    "cooldown": partial(run_design, cooldown),
    "ours": ours,
}


# -- figures ---------------------------------------------------------------------------------------


def figures(case: Case, result: SimulationResult, seed: int) -> Figures:
    """Return the figures of one run.

    ``served`` (share of the callers with an image) and ``mean`` (seconds to it) are about calls
    that start in an outage, ``wasted`` requests about the whole run; ``recovery`` is the time from
    an outage's end until a request is sent to Google that serves its caller.
    """
    spans = case.outcomes(seed).incidents()
    asked = [
        call
        for call, at in enumerate(result.started)
        if any(span.start <= at < span.end for span in spans)
    ]
    served = [result.seconds[call] for call in asked if result.served[call] != LOST]
    good = [each.at for each in result.sent if each.route == GOOGLE and not is_wasted(result, each)]
    back = [min((at for at in good if at >= span.end - 1e-6), default=inf) for span in spans]
    return {
        "served": len(served) / len(asked),
        "mean": fmean(served) if served else nan,
        "wasted": sum(is_wasted(result, each) for each in result.sent),
        "recovery": fmean(at - span.end for at, span in zip(back, spans, strict=True)),
    }


def is_wasted(result: SimulationResult, sent: SimulatedAttempt) -> bool:
    """Return whether a request failed, was cancelled, or brought its image too late."""
    return sent.reason is not None or sent.route != result.served[sent.call]


def means(case: Case, run: Callable[[Case, int], SimulationResult], variants: int) -> Figures:
    """Return the means of a design's figures over the first variants of a case."""
    found = [figures(case, run(case, seed), seed) for seed in SEEDS[:variants]]
    return {key: fmean(each[key] for each in found) for key in found[0]}


def measure(variants: int, peers: Mapping[str, Sequence[str]]) -> Rows:
    """Return the table's rows.

    Args:
        variants: Number of variants of each case.
        peers: Commands that print the figures of other libraries in the first case.
    """
    made: Rows = {}
    for case in CASES:
        found = {name: means(case, run, variants) for name, run in DESIGNS.items()}
        titles = {
            "mean": f"{case.title}: time to an image, s",
            "wasted": f"{case.title}: wasted requests",
        }
        if case is PLAIN:
            found |= medians(peers, 1)
            titles["recovery"] = f"{case.title}: from its end to the first image by Google, s"
        made |= result_rows({name: shown(each) for name, each in found.items()}, titles)
    return made


def shown(figures: Figures) -> dict[str, float | str]:
    """Return the figures; the share of served callers instead of a mean if some were not served."""
    if figures["served"] > ALL_SERVED:
        return {**figures}
    return {**figures, "mean": f"{figures['served']:.0%} served"}


if __name__ == "__main__":
    print(markdown(measure(int(sys.argv[1]) if sys.argv[1:] else len(SEEDS), {})))
