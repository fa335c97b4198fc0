"""Failure rate of a route over time, also where no request was recorded.

A route is in one regime at a time: healthy, or one of a few higher failure rates. The regimes are a
hidden Markov model over steps of some seconds, and the recorded requests are its observations. All
paths of regimes that fit the recording are possible, likelier ones more often; `RegimePaths` draws
some of them.

This treats requests as the evidence that they are. A probe is one observation. A gap that begins
with three failures does not raise the failure rate inside the gap beyond what those three
observations say: a breaker opens because of outcomes that are in the recording, and the likelihood
of the outcomes does not depend on why no requests followed. How often regimes change, and to
which failure rate, is learnt from all incidents of the recording (Gibbs sampling: draw the path,
then the rates of change given the path). So what is known of other incidents applies where there is
little evidence, and a path in an interval without any returns to the usual state of the route.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter
from itertools import compress, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["HEALTHY", "RegimePath", "RegimePaths"]

HEALTHY: Final = 0
"""The regime of a route without an incident."""

_RATES: Final = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.995)
"""Failure rates of the regimes of incidents."""
_USUAL: Final = (0.5,) * 7 + (1.5,)
"""Incidents of each rate that are assumed before any was recorded: most outages are complete."""
_HEALTHY_RATE: Final = (0.5, 49.5)
"""Failures and successes that are assumed of a healthy route, before any was recorded."""
_HEALTHY_S: Final = (1.0, 6 * 3600.0)
"""Incidents, and seconds in which they began, that are assumed before any was recorded."""
_INCIDENT_S: Final = (2.0, 2400.0)
"""The same for changes during incidents."""
_ENDS: Final = (3.0, 1.0)
"""Changes that ended an incident, and that did not, which are assumed before any was recorded."""
_HIGHEST_HEALTHY: Final = 0.07

_STEP: Final = 10.0
"""Seconds of a step."""
_IDLE: Final = 900.0
"""Minimum seconds between two requests for longer steps; more than most open periods."""
_IDLE_STEP: Final = 300.0
_MAX_STEPS: Final = 20_000
"""Recordings with more steps have longer ones."""
_PATHS: Final = 100
"""Number of different paths: each one depends on those before it, so all of them are drawn."""
_WARM_UP: Final = 5
"""Paths that are drawn before the first one that counts."""


class RegimePath(NamedTuple):
    """One possible course of a route's regimes."""

    starts: Sequence[float]
    """The start of each step, in seconds."""
    regimes: bytes
    """The regime of each step."""
    rates: Sequence[float]
    """The failure rate of each regime."""

    def at(self, seconds: float) -> int:
        """Return the regime at a time; beyond the ends, that of the nearest end."""
        return self.regimes[max(0, bisect_right(self.starts, seconds) - 1)]


class _Model(NamedTuple):
    """The rates of change between regimes."""

    begins: float
    """Incidents a second of a healthy route."""
    changes: float
    """Changes a second in an incident."""
    ends: float
    """Share of these changes that end the incident."""
    kinds: Sequence[float]
    """Probability of each regime of incidents, for one that begins or changes."""
    healthy_rate: float


class RegimePaths:
    """Possible courses of a route's regimes, drawn from those that fit its requests.

    Args:
        outcomes: Time in seconds and whether it failed, of each request that says so.
        duration: Seconds of the recording.
        seed: Seed of the draws.
    """

    def __init__(
        self, outcomes: Iterable[tuple[float, bool]], duration: float, seed: int = 0
    ) -> None:
        found = sorted(outcomes)
        self._starts, self._lengths = _steps([at for at, _ in found], duration)
        self._counts = [(0, 0)] * len(self._starts)
        for at, failed in found:
            index = max(0, bisect_right(self._starts, at) - 1)
            failures, others = self._counts[index]
            self._counts[index] = (failures + failed, others + (not failed))
        self._random = random.Random(seed)
        self._model = _Model(
            begins=_HEALTHY_S[0] / _HEALTHY_S[1],
            changes=_INCIDENT_S[0] / _INCIDENT_S[1],
            ends=_ENDS[0] / sum(_ENDS),
            kinds=tuple(each / sum(_USUAL) for each in _USUAL),
            healthy_rate=_HEALTHY_RATE[0] / sum(_HEALTHY_RATE),
        )
        self._drawn: list[RegimePath] = []
        for _ in range(_WARM_UP):
            self._draw()

    def path(self, number: int) -> RegimePath:
        """Return a path by its number; equal requests have equal paths, which repeat after 100."""
        number %= _PATHS
        while len(self._drawn) <= number:
            self._drawn.append(self._draw())
        return self._drawn[number]

    def _draw(self) -> RegimePath:
        """Draw a path given the rates of change, and then these rates given the path."""
        rates = (self._model.healthy_rate, *_RATES)
        path = RegimePath(self._starts, self._sampled(self._filtered(rates)), rates)
        self._model = self._learnt(path)
        return path

    # -- the path, given the rates of change ------------------------------------------------------

    def _filtered(self, rates: Sequence[float]) -> list[list[float]]:
        """Return the probability of each regime in each step, given the steps until then."""
        model, kinds, chances = self._model, self._model.kinds, self._chances()
        likelihoods = {counts: _likelihoods(rates, *counts) for counts in set(self._counts)}
        # A recording most likely begins in the state in which the route usually is.
        usual = model.begins / (model.begins + model.changes * model.ends)
        found: list[list[float]] = []
        now = [1.0 - usual, *(usual * kind for kind in kinds)]
        for counts, length in zip(self._counts, self._lengths, strict=True):
            begins, changes = chances[length]
            healthy, troubled = now[0], sum(now[1:])
            arriving = healthy * begins + troubled * changes * (1.0 - model.ends)
            now = [
                healthy * (1.0 - begins) + troubled * changes * model.ends,
                *[
                    each * (1.0 - changes) + arriving * kind
                    for each, kind in zip(now[1:], kinds, strict=True)
                ],
            ]
            if counts != (0, 0):
                likely = likelihoods[counts]
                now = [each * chance for each, chance in zip(now, likely, strict=True)]
            total = sum(now)
            now = [each / total for each in now]
            found.append(now)
        return found

    def _sampled(self, filtered: Sequence[Sequence[float]]) -> bytes:
        """Draw a path, from its end to its start."""
        path = bytearray(len(filtered))
        after = self._drawn_of(filtered[-1])
        path[-1] = after
        model, chances = self._model, self._chances()
        for index in range(len(filtered) - 2, -1, -1):
            now, (begins, changes) = filtered[index], chances[self._lengths[index + 1]]
            if after == HEALTHY:
                ends = changes * model.ends
                weights = [now[0] * (1.0 - begins), *[each * ends for each in now[1:]]]
            else:
                kind = model.kinds[after - 1]
                goes_on = changes * (1.0 - model.ends) * kind
                weights = [now[0] * begins * kind, *[each * goes_on for each in now[1:]]]
                weights[after] += now[after] * (1.0 - changes)
            path[index] = after = self._drawn_of(weights)
        return bytes(path)

    def _drawn_of(self, weights: Sequence[float]) -> int:
        """Draw an index by its weight."""
        left = self._random.random() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0.0:
                return index
        return max(range(len(weights)), key=weights.__getitem__)  # lost by rounding

    def _chances(self) -> dict[float, tuple[float, float]]:
        """Return the probabilities that an incident begins, or changes, by the length of a step."""
        begins, changes = self._model.begins, self._model.changes
        return {
            length: (-math.expm1(-begins * length), -math.expm1(-changes * length))
            for length in set(self._lengths)
        }

    # -- the rates of change, given the path ------------------------------------------------------

    def _learnt(self, path: RegimePath) -> _Model:
        healthy_s = sum(compress(self._lengths, map(HEALTHY.__eq__, path.regimes)))
        troubled_s = sum(self._lengths) - healthy_s
        moves = Counter((old, new) for old, new in pairwise(path.regimes) if old != new)
        begun = sum(times for (old, _), times in moves.items() if old == HEALTHY)
        ended = sum(times for (_, new), times in moves.items() if new == HEALTHY)
        changed = sum(moves.values()) - begun - ended
        kinds = Counter[int]()
        for (_, new), times in moves.items():
            kinds[new] += times
        if path.regimes[0] != HEALTHY:
            kinds[path.regimes[0]] += 1
        return _Model(
            begins=self._gamma(_HEALTHY_S[0] + begun, _HEALTHY_S[1] + healthy_s),
            changes=self._gamma(_INCIDENT_S[0] + ended + changed, _INCIDENT_S[1] + troubled_s),
            ends=self._random.betavariate(_ENDS[0] + ended, _ENDS[1] + changed),
            kinds=self._dirichlet(
                [usual + kinds[regime] for regime, usual in enumerate(_USUAL, HEALTHY + 1)]
            ),
            healthy_rate=self._healthy_rate(path),
        )

    def _healthy_rate(self, path: RegimePath) -> float:
        failures, others = _HEALTHY_RATE
        for regime, (failed, served) in zip(path.regimes, self._counts, strict=True):
            if regime == HEALTHY:
                failures, others = failures + failed, others + served
        return min(self._random.betavariate(failures, others), _HIGHEST_HEALTHY)

    def _gamma(self, events: float, seconds: float) -> float:
        return self._random.gammavariate(events, 1.0 / seconds)

    def _dirichlet(self, counts: Sequence[float]) -> Sequence[float]:
        drawn = [self._random.gammavariate(each, 1.0) for each in counts]
        total = sum(drawn)
        return [each / total for each in drawn]


def _likelihoods(rates: Sequence[float], failures: int, others: int) -> Sequence[float]:
    """Return the likelihood of these outcomes for each failure rate, up to a factor."""
    logs = [failures * math.log(rate) + others * math.log1p(-rate) for rate in rates]
    highest = max(logs)
    return [math.exp(each - highest) for each in logs]


def _steps(times: Sequence[float], duration: float) -> tuple[list[float], list[float]]:
    """Return the start and length of each step: short ones, and long ones without requests."""
    edges = [0.0, *times, duration]
    gaps = [(low, high) for low, high in pairwise(edges) if high - low > _IDLE]
    busy = max(duration, times[-1] if times else 0.0) - sum(high - low for low, high in gaps)
    step = max(_STEP, busy / _MAX_STEPS)
    starts: list[float] = []
    lengths: list[float] = []
    at = 0.0
    for low, high in [*gaps, (max(duration, step), math.inf)]:
        while at < low:
            starts.append(at)
            lengths.append(step)
            at += step
        while at + _IDLE_STEP < high < math.inf:
            starts.append(at)
            lengths.append(_IDLE_STEP)
            at += _IDLE_STEP
    return starts, lengths
