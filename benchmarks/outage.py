"""What an outage of the primary costs each image, under three designs; on virtual time.

    python benchmarks/outage.py

The same callers meet the same worlds, five of them: request for request, the same chance decides
under every design. The designs:

guide       what this library grew from: up to three tries of Google, 5 and 10 s apart (a timed out
            one is repeated at once), then OpenAI; the whole time inside one slot. Its limit of
            images a minute holds callers apart, not requests: retries go beyond it.
cooldown    a router's: three tries, 0.5 and 1 s apart, and one more sleep after the last; after
            three failures within a minute Google is skipped for a minute, and then everybody asks
            it again. No queue and no slots, so it never waits for one.
ours        this library with its defaults: the production ladder itself, over stand-in providers.

"Added" is the time to the image, less the time that the request which brought it took: what
queueing, back-off, doomed requests and waiting for them cost. OpenAI's own slowness is not in it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field, fields, replace
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, Protocol

from resilient_imagen.reasons import Reason
from resilient_imagen.settings import Settings
from resilient_imagen.tuning.drive import drive
from resilient_imagen.tuning.loop import run_lean
from resilient_imagen.tuning.scenario import (
    Latency,
    Scenario,
    ScenarioTruth,
    Service,
    Traffic,
    Trouble,
    waves,
)
from resilient_imagen.tuning.truth import Ask, Coin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_imagen.tuning.truth import Met, Truth

SEEDS = (1, 2, 3, 4, 5)
GOOGLE, OPENAI = 0, 1

# Latencies: facts of 2026 for 1K pictures of gemini-3-pro-image (16 to 23 s, tail 60), and for
# GPT Image at medium quality (mean 23 s, tail 26 in one measurement; wider here).
SERVICES = {
    "google": Service(latency=Latency(19.0, 35.0), cost_usd=0.134),
    "openai": Service(latency=Latency(21.0, 32.0), cost_usd=0.05),
}
OVERLOAD = Trouble(start=1800, duration=1800, reason=Reason.OVERLOADED, latency=1.0)


@dataclass(frozen=True)
class Case:
    """A world, and the limits that a design has to keep."""

    title: str
    scenario: Scenario
    slots: int
    """Requests in flight per provider."""
    per_minute: float
    """Images a minute per provider."""


def cases() -> list[Case]:
    """A long outage and a wave of short ones: with room to spare, and within the default limits."""
    waved = waves(replace(OVERLOAD, start=900, duration=300), every=1800, times=12)
    worlds = (
        ("30 minutes of outage", 5400.0, (OVERLOAD,)),
        ("12 overloads of 5 minutes in 6 hours", 21_600.0, waved),
    )
    limits = (
        (10.0, 16, 20.0, "10 images a minute, limits out of the way (16 slots, 20 a minute)"),
        (8.0, 4, 10.0, "8 images a minute, default limits (4 slots, 10 a minute)"),
        (10.0, 4, 10.0, "10 images a minute, default limits: the very edge of what they allow"),
    )
    return [
        Case(
            f"{what}, {how}",
            Scenario(
                traffic=Traffic(per_minute=traffic, duration=duration, spacing="even"),
                services=SERVICES,
                troubles=troubles,
            ),
            slots,
            per_minute,
        )
        for what, duration, troubles in worlds
        for traffic, slots, per_minute, how in limits
    ]


# -- what a design leaves behind ------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """One caller's image."""

    asked: float
    seconds: float
    route: int | None
    making: float
    """Seconds that the request which brought it took."""

    @property
    def added(self) -> float:
        """Seconds on top of that."""
        return self.seconds - self.making


@dataclass
class Outcome:
    """All images, and every failed request with its moment and its seconds."""

    images: list[Image] = field(default_factory=list)
    doomed: list[tuple[float, float]] = field(default_factory=list)


class Design(Protocol):
    """One way from a caller to an image."""

    async def image(self, call: int) -> Image | None:
        """Serve one caller; None when there is no image."""
        ...


class World:
    """Answers the designs that are not ours, exactly as it would answer us."""

    def __init__(self, truth: Truth, seed: int) -> None:
        self._truth = truth
        self.seed = seed
        self.outcome = Outcome()

    async def ask(self, call: int, route: int, number: int, limit: float) -> Met:
        """Send one request; its seconds pass."""
        at = asyncio.get_running_loop().time()
        met = self._truth.meet(Ask(route, at, Coin(self.seed, call, route, number)))
        late = met.latency > limit
        await asyncio.sleep(min(met.latency, limit))
        if late:
            met = met._replace(reason=Reason.TIMEOUT, latency=limit)
        if met.reason is not None:
            self.outcome.doomed.append((at, met.latency))
        return met


class Guide:
    """Three tries inside a held slot, then the other vendor."""

    def __init__(self, world: World, case: Case) -> None:
        self._world = world
        self._slots = asyncio.Semaphore(case.slots)
        self._turn = asyncio.Lock()
        self._gap = 60.0 / case.per_minute
        self._last = -self._gap
        self._chance = random.Random(world.seed)

    async def image(self, call: int) -> Image | None:
        """Take a slot and a place, and hold the slot to the end."""
        asked = _now()
        async with self._slots:
            async with self._turn:
                await asyncio.sleep(max(0.0, self._last + self._gap - _now()))
                self._last = _now()
            for number in range(3):
                met = await self._world.ask(call, GOOGLE, number, 60.0)
                if met.reason is None:
                    return Image(asked, _now() - asked, GOOGLE, met.latency)
                if met.reason is not Reason.TIMEOUT and number < 2:
                    pause = 5.0 * 2**number
                    await asyncio.sleep(max(1.0, pause * self._chance.uniform(0.7, 1.3)))
            met = await self._world.ask(call, OPENAI, 0, 600.0)
            return None if met.reason else Image(asked, _now() - asked, OPENAI, met.latency)


class Cooldown:
    """A router's: quick retries, then skip the failing one for a while; no probe."""

    ALLOWED, WITHIN, SECONDS = 2, 60.0, 60.0

    def __init__(self, world: World, case: Case) -> None:
        del case  # a router has no limits to wait for
        self._world = world
        self._failed: deque[float] = deque()
        self._skip_until = 0.0
        self._chance = random.Random(world.seed)

    async def image(self, call: int) -> Image | None:
        """Try Google unless it is cooling down, then OpenAI."""
        asked = _now()
        for number in range(3):
            if _now() < self._skip_until:
                break
            met = await self._world.ask(call, GOOGLE, number, 60.0)
            if met.reason is None:
                return Image(asked, _now() - asked, GOOGLE, met.latency)
            self._count()
            await asyncio.sleep(min(0.5 * 2**number, 8.0) + self._chance.uniform(0.0, 0.75))
        met = await self._world.ask(call, OPENAI, 0, 600.0)
        return None if met.reason else Image(asked, _now() - asked, OPENAI, met.latency)

    def _count(self) -> None:
        now = _now()
        self._failed.append(now)
        while self._failed[0] < now - self.WITHIN:
            self._failed.popleft()
        if len(self._failed) > self.ALLOWED:
            self._skip_until = now + self.SECONDS


def play(case: Case, design: Callable[[World, Case], Design], seed: int) -> Outcome:
    """Send the case's callers through a design that is not ours."""
    world = World(truth_of(case), seed)

    async def one(design: Design, call: int) -> None:
        image = await design.image(call)
        if image is not None:
            world.outcome.images.append(image)

    async def main() -> None:
        made = design(world, case)
        tasks = []
        for call, at in enumerate(case.scenario.traffic.arrivals(seed)):
            await asyncio.sleep(max(0.0, at - _now()))
            tasks.append(asyncio.ensure_future(one(made, call)))
        await asyncio.gather(*tasks)

    run_lean(main())
    return world.outcome


def ours(case: Case, seed: int) -> Outcome:
    """Send the case's callers through the production ladder, with its defaults."""
    settings = _settings(case)
    played = drive(settings, truth_of(case), case.scenario.traffic.arrivals(seed), seed=seed)
    making = {sent.call: sent.seconds for sent in played.sent if sent.reason is None}
    outcome = Outcome(
        doomed=[(sent.at, sent.seconds) for sent in played.sent if sent.reason is not None]
    )
    for call, route in enumerate(played.served):
        if route >= 0:
            seconds = played.seconds[call]
            outcome.images.append(Image(played.started[call], seconds, route, making[call]))
    return outcome


def _settings(case: Case) -> Settings:
    return Settings(max_concurrent=case.slots, ipm=case.per_minute)


def truth_of(case: Case) -> Truth:
    return ScenarioTruth(case.scenario, ["google", "openai"])


def _now() -> float:
    return asyncio.get_running_loop().time()


# -- the tables -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One design's figures; those of images count the callers that asked during the trouble."""

    name: str
    mean: float
    p95: float
    added: float
    doomed: float
    doomed_seconds: float
    google: float
    recovery: float


def measure(name: str, case: Case, outcome: Outcome) -> Row:
    """Sum up one design's run."""
    spans = truth_of(case).troubles()
    hit = [image for image in outcome.images if any(s.start <= image.asked < s.end for s in spans)]
    back = []
    for span in spans:
        later = [
            image.asked + image.seconds - image.making
            for image in outcome.images
            if image.route == GOOGLE and image.asked + image.seconds - image.making >= span.end
        ]
        back.append(min(later) - span.end)
    times = [image.seconds for image in hit]
    return Row(
        name,
        fmean(times),
        quantiles(times, n=20)[-1],
        fmean(image.added for image in hit),
        len(outcome.doomed),
        sum(seconds for _, seconds in outcome.doomed),
        sum(image.route == GOOGLE for image in outcome.images) / len(outcome.images),
        fmean(back),
    )


HEAD = (
    f"{'':10}{'mean':>9}{'p95':>9}{'added':>9}{'doomed':>9}{'seconds':>9}"
    f"{'by':>9}{'first by':>10}\n"
    f"{'design':10}{'s':>9}{'s':>9}{'s/image':>9}{'requests':>9}{'on them':>9}"
    f"{'Google':>9}{'Google, s':>10}"
)


def mean(rows: Sequence[Row]) -> Row:
    """The mean of one design's figures in all worlds."""
    figures = {
        each.name: fmean(getattr(row, each.name) for row in rows)
        for each in fields(Row)
        if each.name != "name"
    }
    return Row(rows[0].name, **figures)


def report(case: Case, worlds: Sequence[dict[str, Outcome]]) -> None:
    """Print one case's table: the means over its worlds."""
    rows = {
        name: mean([measure(name, case, found[name]) for found in worlds]) for name in worlds[0]
    }
    print(f"\n{case.title}\n{HEAD}")
    for row in rows.values():
        print(
            f"{row.name:10}{row.mean:9.1f}{row.p95:9.1f}{row.added:9.2f}{row.doomed:9.0f}"
            f"{row.doomed_seconds:9.0f}{row.google:9.1%}{row.recovery:10.1f}"
        )
    guide, own = rows["guide"], rows["ours"]
    print(
        f"the guide adds {guide.added / max(own.added, 1e-9):.0f} times as much to an image and"
        f" sends {guide.doomed / max(own.doomed, 1):.0f} times as many doomed requests as we do"
    )


def outcomes(case: Case, seed: int) -> dict[str, Outcome]:
    """Every design in the same world."""
    return {
        "guide": play(case, Guide, seed),
        "cooldown": play(case, Cooldown, seed),
        "ours": ours(case, seed),
    }


if __name__ == "__main__":
    for each in cases():
        report(each, [outcomes(each, seed) for seed in SEEDS])
