"""Worlds of an independent simulation: services whose outcome of any request at any time is known.

A world has two services, Google's and OpenAI's. Each is in one regime at a time, which determines
how often and how its requests fail. The outcome of a request depends on its time, call and number
only, so a world can be simulated under any settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, Final

from resilient_imagen.cost import usual_image_cost

ROUTES: Final = ("google:gemini-3-pro-image", "openai:gpt-image-2.5-flare")
COSTS: Final = tuple(usual_image_cost(route.partition(":")[2], "2K") or 0.0 for route in ROUTES)
"""Dollars of an image on each route, by the library's model table."""
_MINUTE: Final = 60.0


@dataclass(frozen=True)
class Regime:
    """How a service responds from ``start`` to ``end``, in seconds."""

    start: float
    end: float
    fails: float = 1.0
    """Share of its requests that fail."""
    reason: str = "overloaded"
    after: float = 1.0
    """Seconds until a request has failed; infinite for no response."""
    hint: float | None = None
    """Seconds that a failed request is asked to wait."""
    slower: float = 1.0
    """Factor on the latency of requests that do not fail."""


@dataclass(frozen=True)
class World:
    """Two services, their regimes, and the arrivals of calls."""

    name: str
    seed: int
    hours: float
    per_minute: float
    google: tuple[Regime, ...]
    openai: tuple[Regime, ...] = ()
    blips: float = 0.01
    """Share of requests that fail outside all regimes."""

    def arrivals(self) -> Iterator[float]:
        """Yield the start of each call, in seconds."""
        chance, at = Random(f"{self.seed} arrivals"), 0.0
        while (at := at + chance.expovariate(self.per_minute / 60.0)) < self.hours * 3600.0:
            yield at

    def outcome(
        self, route: int, at: float, call: int, number: int
    ) -> tuple[str | None, float, float | None]:
        """Return the reason (None: an image), seconds and hint of a request sent at ``at``."""
        chance = Random(f"{self.seed} {route} {call} {number}")
        coin, blip, took = chance.random(), chance.random(), chance.gauss(0.0, 1.0)
        slower = 1.0
        for regime in self.google if route == 0 else self.openai:
            if regime.start <= at < regime.end:
                if coin < regime.fails:
                    return regime.reason, regime.after, regime.hint
                slower = regime.slower
        if blip < self.blips:
            return "server_error", 1.5, None
        median, sigma = ((19.0, 0.35), (22.0, 0.27))[route]
        return None, slower * median * math.exp(sigma * took), None


def _incidents(
    seed: int, hours: float, every: float, lasts: float
) -> Iterator[tuple[float, float]]:
    """Yield random starts and ends, with these average minutes between and within them."""
    chance, at = Random(f"{seed} incidents"), 0.0
    while True:
        at += _MINUTE * every * (0.4 + chance.expovariate(1 / 0.6))
        end = at + _MINUTE * lasts * (0.3 + chance.expovariate(1 / 0.7))
        if at >= hours * 3600.0:
            return
        yield at, end
        at = end


def _world(
    name: str,
    seed: int,
    every: float,
    lasts: float,
    *,
    hours: float,
    per_minute: float = 6.0,
    openai: Sequence[Regime] = (),
    **regime: Any,
) -> World:
    regimes = [Regime(start, end, **regime) for start, end in _incidents(seed, hours, every, lasts)]
    return World(name, seed, hours, per_minute, tuple(regimes), tuple(openai))


def worlds(seed: int = 0, hours: float = 5.0) -> list[World]:
    """Return one world of each kind; another seed moves every incident and call."""
    number = count(100 * seed + 1)
    aftermath = next(number)
    weak = [
        regime
        for start, end in _incidents(aftermath, hours, 80, 20)
        for regime in (Regime(start, end), Regime(end, end + 1.5 * (end - start), fails=0.5))
    ]
    second = [
        Regime(start, end, fails=0.6, reason="server_error", after=3.0)
        for start, end in _incidents(100 * seed + 77, hours, 80, 15)
    ]
    hung: dict[str, Any] = {"reason": "timeout", "after": math.inf}
    throttled: dict[str, Any] = {"reason": "rate_limited", "after": 0.4, "hint": 25.0}
    return [
        _world("half-working for hours", next(number), 20, 120, hours=hours, fails=0.5),
        _world("a third fails at times", next(number), 40, 40, hours=hours, fails=0.35),
        _world("most requests fail", next(number), 60, 40, hours=hours, fails=0.8),
        World("outages, then half strength", aftermath, hours, 6.0, tuple(weak)),
        _world("long outages", next(number), 70, 40, hours=hours),
        _world("flapping", next(number), 6, 3, hours=hours),
        _world("hangs", next(number), 70, 20, hours=hours, **hung),
        _world("half of the requests hang", next(number), 70, 25, hours=hours, fails=0.5, **hung),
        _world("slow", next(number), 60, 40, hours=hours, per_minute=3.5, fails=0.0, slower=3.0),
        _world("throttled", next(number), 15, 4, hours=hours, fails=0.8, **throttled),
        _world("thin traffic", next(number), 110, 45, hours=2.5 * hours, per_minute=1.5),
        _world("both vendors", next(number), 60, 25, hours=hours, openai=second),
    ]
