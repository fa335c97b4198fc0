"""Scenarios: traffic, services and their outages, for simulations.

::

    Scenario(
        traffic=Traffic(per_minute=6, duration=3600),
        outages=(Outage(start=600, duration=600, reason=Reason.OVERLOADED),),
    )
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Final, Literal

from resilient_imagen.reasons import Reason
from resilient_imagen.tuning.outcome_model import (
    NEVER,
    DeterministicRng,
    Incident,
    SimulatedOutcome,
)
from resilient_imagen.tuning.prices import image_cost

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.outcome_model import SimulatedRequest

__all__ = [
    "LatencyDistribution",
    "Outage",
    "Scenario",
    "ScenarioOutcomes",
    "Service",
    "Traffic",
    "waves",
]

_NORMAL: Final = NormalDist()
_AT_95: Final = _NORMAL.inv_cdf(0.95)
_DAY: Final = 86_400.0
_FAILS, _LATENCY, _BLIPS, _ARRIVES = range(4)  # salts of random numbers
_OURS: Final = {Reason.CIRCUIT_OPEN, Reason.SATURATED, Reason.DEADLINE, Reason.CANCELLED}
"""Reasons that are not failures of a service."""


def _check(name: str, value: object, *, allowed: bool, what: str) -> None:
    if not allowed:
        raise ValueError(f"{name} must be {what}, not {value!r}")


def _check_share(name: str, value: float) -> None:
    _check(name, value, allowed=0 <= value <= 1, what="from 0 to 1")


def _check_amount(name: str, value: float) -> None:
    _check(name, value, allowed=0 <= value < math.inf, what="0 or more, and finite")


def _check_above_zero(name: str, value: float) -> None:
    _check(name, value, allowed=0 < value < math.inf, what="above 0, and finite")


def _check_reason(name: str, value: Reason) -> None:
    given = [reason for reason in Reason if reason not in _OURS]
    what = "a Reason: " + ", ".join(given)
    _check(name, value, allowed=isinstance(value, Reason) and value in given, what=what)


@dataclass(frozen=True, slots=True)
class LatencyDistribution:
    """The latency of successful responses: log-normal, by its median and 95th percentile.

    Raises:
        ValueError: Not 0 < median <= p95.
    """

    median: float
    """Seconds."""
    p95: float
    """Seconds; 95 % of the responses take at most this long."""

    def __post_init__(self) -> None:
        """Check both fields."""
        if not 0 < self.median <= self.p95 < math.inf:
            raise ValueError("a latency needs 0 < median <= p95, both finite")

    def at(self, share: float) -> float:
        """Return the quantile for a share above 0 and below 1, in seconds."""
        if self.p95 == self.median:
            return self.median
        sigma = math.log(self.p95 / self.median) / _AT_95
        return self.median * math.exp(sigma * _NORMAL.inv_cdf(min(max(share, 1e-9), 1 - 1e-9)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A healthy provider.

    Raises:
        ValueError: A number is out of range, or the reason is not a failure of a service.
    """

    latency: LatencyDistribution = LatencyDistribution(20.0, 45.0)
    blips: float = 0.0
    """Share of requests that fail independently, outside outages: 0 to 1."""
    blip_reason: Reason = Reason.SERVER_ERROR

    def __post_init__(self) -> None:
        """Check every field."""
        _check_share("blips", self.blips)
        _check_reason("blip_reason", self.blip_reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """An interval in which a provider fails or is slow.

    Raises:
        ValueError: A number is out of range, or the reason is not a failure of a service.
    """

    start: float
    """Seconds since the scenario's start."""
    duration: float
    """Seconds."""
    provider: str = "google"
    reason: Reason = Reason.OVERLOADED
    """The reason of failing requests; TIMEOUT means that they get no response."""
    share: float = 1.0
    """Share of the requests that fail, 0 to 1."""
    latency: float = 1.0
    """Seconds until a failing request is answered."""
    retry_after: float | None = None
    """Seconds the server asks to wait."""
    slower: float = 1.0
    """Factor on the latency of requests that do not fail."""
    ramp: float = 0.0
    """Seconds over which share and slowness grow from zero to their full size."""

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("start", "latency", "ramp"):
            _check_amount(name, getattr(self, name))
        for name in ("duration", "slower"):
            _check_above_zero(name, getattr(self, name))
        _check_share("share", self.share)
        _check_reason("reason", self.reason)
        if self.retry_after is not None:
            _check_amount("retry_after", self.retry_after)

    def strength(self, at: float) -> float:
        """Return its strength at a time: 0 outside, up to 1 inside."""
        if not self.start <= at < self.start + self.duration:
            return 0.0
        return min(1.0, (at - self.start) / self.ramp) if self.ramp else 1.0


def waves(outage: Outage, *, every: float, times: int) -> tuple[Outage, ...]:
    """Repeat an outage ``times`` times, with the starts ``every`` seconds apart."""
    return tuple(replace(outage, start=outage.start + index * every) for index in range(times))


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The arrival times of calls.

    Raises:
        ValueError: A field is out of range.
    """

    per_minute: float = 6.0
    """Average calls a minute. With IMAGE_GEN_IPM or more, the queue grows without limit."""
    duration: float = 3600.0
    """Seconds in which calls arrive."""
    spacing: Literal["even", "random"] = "random"
    """Evenly spaced, or random like independent callers (Poisson)."""
    batch: int = 1
    """Number of calls that arrive together, such as the scenes of a storyboard."""
    swing: float = 0.0
    """Relative increase in the middle of each day over its average, and decrease at its ends, from
    0 to below 1."""

    def __post_init__(self) -> None:
        """Check every field."""
        _check_above_zero("per_minute", self.per_minute)
        _check_above_zero("duration", self.duration)
        _check("batch", self.batch, allowed=self.batch >= 1, what="1 or more")
        _check("swing", self.swing, allowed=0 <= self.swing < 1, what="from 0 to below 1")
        known = self.spacing in {"even", "random"}
        _check("spacing", self.spacing, allowed=known, what="even or random")

    def arrivals(self, seed: int) -> Iterator[float]:
        """Yield the start of each call in seconds, in order."""
        gap = 60.0 * self.batch / self.per_minute
        at, index = 0.0, 0
        while True:
            wait = gap / (1.0 - self.swing * math.cos(2 * math.pi * at / _DAY))
            if self.spacing == "random":
                wait *= -math.log(1.0 - DeterministicRng(seed, index).unit(_ARRIVES))
            if index or self.spacing == "random":
                at += wait
            if at >= self.duration:
                return
            yield from [at] * self.batch
            index += 1


def _two_services() -> Mapping[str, Service]:
    return {
        "google": Service(),
        "openai": Service(latency=LatencyDistribution(35.0, 70.0)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Traffic, services and their outages. Outages of one provider may overlap.

    Raises:
        ValueError: An outage's provider has no service.
    """

    traffic: Traffic = Traffic()
    services: Mapping[str, Service] = field(default_factory=_two_services)
    """By provider name, as in IMAGE_GEN_ROUTES."""
    outages: tuple[Outage, ...] = ()

    def __post_init__(self) -> None:
        """Check that the provider of every outage has a service."""
        for outage in self.outages:
            known = outage.provider in self.services
            what = f"one of the services: {', '.join(self.services)}"
            _check("an outage's provider", outage.provider, allowed=known, what=what)


class ScenarioOutcomes:
    """The outcome model of a scenario.

    Args:
        scenario: The scenario.
        settings: The settings with the routes.

    Raises:
        ValueError: The scenario has no service for one of the routes.
    """

    def __init__(self, scenario: Scenario, settings: Settings) -> None:
        providers = [route.provider for route in settings.accounts]
        missing = [name for name in providers if name not in scenario.services]
        if missing:
            raise ValueError(f"the scenario has no service for {', '.join(missing)}")
        self._services = [scenario.services[name] for name in providers]
        self._costs = [image_cost(route, settings) for route in settings.accounts]
        self._outages = [_ByTime(scenario.outages, name) for name in providers]

    def outcome_for(self, ask: SimulatedRequest) -> SimulatedOutcome:
        """Return the outcome of a request by the service and its outages."""
        service, cost, coin = self._services[ask.route], self._costs[ask.route], ask.coin
        slower = 1.0
        for salt, outage in enumerate(self._outages[ask.route].at(ask.at)):
            strength = outage.strength(ask.at)
            if coin.unit(_FAILS + 16 * salt) < outage.share * strength:
                return _failed(outage, cost)
            slower *= 1.0 + (outage.slower - 1.0) * strength
        if service.blips and coin.unit(_BLIPS) < service.blips:
            return SimulatedOutcome(service.blip_reason, 1.0)
        latency = slower * service.latency.at(coin.unit(_LATENCY))
        return SimulatedOutcome(None, latency, None, cost)

    def incidents(self) -> Sequence[Incident]:
        """Return the outages of the first route."""
        return self._outages[0].spans


def _failed(outage: Outage, cost: float) -> SimulatedOutcome:
    if outage.reason is Reason.TIMEOUT:
        return SimulatedOutcome(Reason.TIMEOUT, NEVER, None, cost)
    return SimulatedOutcome(outage.reason, outage.latency, outage.retry_after)


class _ByTime:
    """An index of one provider's outages by time."""

    def __init__(self, outages: Sequence[Outage], provider: str) -> None:
        own = [outage for outage in outages if outage.provider == provider]
        edges = sorted({0.0, *(t.start for t in own), *(t.start + t.duration for t in own)})
        self._edges = edges
        self._between = [[t for t in own if t.strength(edge) or t.start == edge] for edge in edges]
        self.spans: list[Incident] = []
        for outage in sorted(own, key=lambda each: each.start):
            end = outage.start + outage.duration
            if self.spans and outage.start <= self.spans[-1].end:
                self.spans[-1] = Incident(self.spans[-1].start, max(end, self.spans[-1].end))
            else:
                self.spans.append(Incident(outage.start, end))

    def at(self, moment: float) -> Sequence[Outage]:
        return self._between[bisect_right(self._edges, moment) - 1]
