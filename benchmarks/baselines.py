"""Other ways to an image, in the worlds of ``worlds``.

bare        Google's SDK, and nothing else: one request, without a limit.
guide       what this library grew from: up to three tries of Google, 5 and 10 s apart (a timed out
            one is repeated at once), then OpenAI; the whole time inside one slot. Its limit of
            images a minute holds callers apart, not requests: retries go beyond it. It knows 503
            and 429 by their text; here it is let off, and knows every failure.
cooldown    a router's, simulated: three tries, 0.5 and 1 s apart, and one more sleep after the
            last; after three failures within a minute Google is skipped for a minute, and then
            everybody asks it again. No queue and no slots, so it never waits for one.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from outage_scenarios import GOOGLE, NO_LIMIT, OPENAI, Case, Design, Image, OutageScenario, now

from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from resilient_imagen.tuning.outcome_model import SimulatedOutcome


class Bare:
    """One request."""

    def __init__(self, world: OutageScenario, case: Case) -> None:
        del case
        self._world = world

    async def image(self, call: int) -> Image | None:
        """Ask Google."""
        asked = now()
        return made(asked, GOOGLE, await self._world.ask(call, GOOGLE, limit=NO_LIMIT))


class GuideBaseline:
    """Three tries inside a held slot, then the other vendor."""

    def __init__(self, world: OutageScenario, case: Case) -> None:
        self._world = world
        self._slots = asyncio.Semaphore(case.slots)
        self._turn = asyncio.Lock()
        self._gap = 60.0 / case.per_minute
        self._last = -self._gap
        self._chance = random.Random(world.seed)

    async def image(self, call: int) -> Image | None:
        """Take a slot and a place, and hold the slot to the end."""
        asked = now()
        async with self._slots:
            async with self._turn:
                await asyncio.sleep(max(0.0, self._last + self._gap - now()))
                self._last = now()
            for number in range(3):
                met = await self._world.ask(call, GOOGLE, number)
                if met.reason is None:
                    return made(asked, GOOGLE, met)
                if met.reason is not Reason.TIMEOUT and number < 2:
                    pause = 5.0 * 2**number
                    await asyncio.sleep(max(1.0, pause * self._chance.uniform(0.7, 1.3)))
            return made(asked, OPENAI, await self._world.ask(call, OPENAI))


class Cooldown:
    """A router's: quick retries, then skip the failing one for a while; no probe."""

    ALLOWED, WITHIN, SECONDS = 2, 60.0, 60.0

    def __init__(self, world: OutageScenario, case: Case) -> None:
        del case  # a router has no limits to wait for
        self._world = world
        self._failed: deque[float] = deque()
        self._skip_until = 0.0
        self._chance = random.Random(world.seed)

    async def image(self, call: int) -> Image | None:
        """Try Google unless it is cooling down, then OpenAI."""
        asked = now()
        for number in range(3):
            if now() < self._skip_until:
                break
            met = await self._world.ask(call, GOOGLE, number)
            if met.reason is None:
                return made(asked, GOOGLE, met)
            self._count()
            await asyncio.sleep(min(0.5 * 2**number, 8.0) + self._chance.uniform(0.0, 0.75))
        return made(asked, OPENAI, await self._world.ask(call, OPENAI))

    def _count(self) -> None:
        self._failed.append(now())
        while self._failed[0] < now() - self.WITHIN:
            self._failed.popleft()
        if len(self._failed) > self.ALLOWED:
            self._skip_until = now() + self.SECONDS


DESIGNS: dict[str, Callable[[OutageScenario, Case], Design]] = {
    "bare": Bare,
    "guide": GuideBaseline,
    "cooldown": Cooldown,
}


def made(asked: float, route: int, met: SimulatedOutcome) -> Image | None:
    """The image, if there is one."""
    return None if met.reason else Image(asked, now() - asked, route, met.latency)
