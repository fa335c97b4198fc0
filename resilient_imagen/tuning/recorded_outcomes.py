"""Recorded outcomes: the outcome model of a recording.

A request has the outcome of the recorded request nearest in time on the same route. Without a
recorded request nearby (the breaker was open, or the route was not needed), the outcome is an
assumption and counts as unseen:

- In a gap between two recorded requests, the state of the earlier one continues up to a turning
  point, and the state of the later one begins there. The turning point is unknown: it is the middle
  by default, and the start or end of the gap for the best and worst case. On each side, the outcome
  is that of one of several requests near the gap, so that a single failure does not fill the gap.
- An abandoned request had no response by then. With a longer timeout it would have had the outcome
  of a nearby request that took longer, or no response if there is none.
- A route without recorded requests responds like a healthy one, after `ASSUMED_LATENCY` seconds.

A recording does not show how the service would have reacted to more or fewer requests. It does not
show either which failures, apart from a rejected key, concerned the whole account and so its other
models; none are assumed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import groupby
from operator import itemgetter
from statistics import median
from typing import TYPE_CHECKING, Final

from resilient_imagen.cost import TokenUsage, cost_usd
from resilient_imagen.reasons import Reason
from resilient_imagen.tuning.outcome_model import NEVER, Incident, SimulatedOutcome
from resilient_imagen.tuning.recording import IMAGE, REASONS, RouteLog

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.outcome_model import DeterministicRng, SimulatedRequest
    from resilient_imagen.tuning.recording import Recording

__all__ = ["ASSUMED_LATENCY", "RecordedOutcomes"]

ASSUMED_LATENCY: Final = 30.0
"""Latency in seconds of a route without recorded requests."""

_ASSUMED_TOKENS: Final = 6000
"""Output tokens of an image without a recorded cost: a portrait image of high quality."""

_NEARBY: Final = 30.0
"""Seconds within which the outcome of a recorded request applies to another request."""
_SIDE: Final = 5
"""Number of recorded requests that represent one side of a gap."""
_TOGETHER: Final = 120.0
"""Maximum seconds between two failures of one incident, if a request succeeded in between."""
_MANY: Final = 3
"""Minimum failures of an incident."""
_LASTING: Final = 10.0
"""Minimum seconds between the failures of an incident with only two."""
_TAIL: Final = 40
"""Number of nearby recorded requests from which the latency of a slow request is taken."""
_SIDES, _LONGER = range(2)  # salts of random numbers


class RecordedOutcomes:
    """The outcome model of a recording.

    Args:
        recording: The recording.
        settings: The settings with the routes and timeouts.
        turning: Turning point in an unseen gap, from 0 (its start) to 1 (its end).
    """

    def __init__(self, recording: Recording, settings: Settings, *, turning: float = 0.5) -> None:
        self._routes = [
            _Route(recording.routes.get(route.key, RouteLog()), route.key, settings, turning)
            for route in settings.accounts
        ]

    def outcome_for(self, ask: SimulatedRequest) -> SimulatedOutcome:
        """Return the outcome of a nearby recorded request, or an assumption."""
        return self._routes[ask.route].meet(ask.at, ask.coin, ask.before)

    def incidents(self) -> Sequence[Incident]:
        """Return the incidents of the first route."""
        return self._routes[0].troubles()


class _Route:
    def __init__(self, log: RouteLog, name: str, settings: Settings, turning: float) -> None:
        provider, _, model = name.partition(":")
        self._at = log.at
        self._log = log
        self._timeout = settings.timeout_for(provider)
        self._turning = turning
        self._image_cost = _image_cost(log, model)

    def meet(self, at: float, coin: DeterministicRng, before: float | None) -> SimulatedOutcome:
        if not self._at:
            return SimulatedOutcome(None, ASSUMED_LATENCY, None, self._image_cost, seen=False)
        index, seen = self._stand_in(at, coin)
        if seen and before is not None and index == self._nearest(before):
            index = self._next_nearest(at, index)  # a retry is not the request it repeats
        return self._as_met(index, coin, seen=seen)

    # -- the recorded request ------------------------------------------------------------------

    def _stand_in(self, at: float, coin: DeterministicRng) -> tuple[int, bool]:
        index = self._nearest(at)
        if abs(self._at[index] - at) <= _NEARBY:
            return index, True
        later = bisect_left(self._at, at)
        low, high = self._edges(later)
        first = at < low + self._turning * (high - low) if later else False
        if later == len(self._at):
            first = True
        side = int(coin.unit(_SIDES) * _SIDE)
        picked = later - 1 - side if first else later + side
        return min(max(picked, 0), len(self._at) - 1), False

    def _edges(self, later: int) -> tuple[float, float]:
        low = self._at[later - 1] if later else self._at[0]
        high = self._at[later] if later < len(self._at) else self._at[-1]
        return low, high

    def _nearest(self, at: float) -> int:
        later = bisect_left(self._at, at)
        if later == 0:
            return 0
        if later == len(self._at) or at - self._at[later - 1] <= self._at[later] - at:
            return later - 1
        return later

    def _next_nearest(self, at: float, index: int) -> int:
        if index == 0 or index == len(self._at) - 1:
            return min(max(index, 1), len(self._at) - 2) if len(self._at) > 1 else index
        earlier, later = self._at[index - 1], self._at[index + 1]
        return index - 1 if at - earlier < later - at else index + 1

    # -- its outcome ---------------------------------------------------------------------------

    def _as_met(self, index: int, coin: DeterministicRng, *, seen: bool) -> SimulatedOutcome:
        log = self._log
        latency, number = log.latency[index], log.reason[index]
        if log.given_up[index]:
            if self._timeout <= latency:
                return SimulatedOutcome(Reason.TIMEOUT, NEVER, None, self._image_cost, seen)
            return self._had_we_waited(index, latency, coin)
        if number == IMAGE:
            cost = log.cost[index]
            return SimulatedOutcome(
                None, latency, None, self._image_cost if math.isnan(cost) else cost, seen
            )
        hint = log.hint[index]
        return SimulatedOutcome(
            REASONS[number], latency, None if math.isnan(hint) else hint, 0.0, seen
        )

    def _had_we_waited(self, index: int, waited: float, coin: DeterministicRng) -> SimulatedOutcome:
        """Return the outcome of a nearby request that took longer, or no response without one."""
        log = self._log
        nearby = range(max(0, index - _TAIL), min(len(log), index + _TAIL + 1))
        longer = [each for each in nearby if not log.given_up[each] and log.latency[each] > waited]
        if not longer and REASONS[log.reason[index]] is not Reason.TIMEOUT:
            # The caller left later than any response nearby took, so a response was due.
            longer = [each for each in nearby if not log.given_up[each]]
        if not longer:
            return SimulatedOutcome(Reason.TIMEOUT, NEVER, None, self._image_cost, seen=False)
        return self._as_met(longer[int(coin.unit(_LONGER) * len(longer))], coin, seen=False)

    # -- incidents -----------------------------------------------------------------------------

    def troubles(self) -> Sequence[Incident]:
        """Return intervals with at least three failures that are a third of the requests or more.

        Two failures are sufficient if no request succeeded in between. An incident ends at the
        turning point between its last failure and the next image.
        """
        log = self._log
        failed = [index for index in range(len(log)) if log.failed(index)]
        spans = []
        for first, last, count in self._clusters(failed):
            between = last - first + 1
            lasting = self._at[last] - self._at[first] >= _LASTING
            if (count >= _MANY and count * 3 >= between) or (count == between > 1 and lasting):
                spans.append(Incident(self._at[first], self._end(last)))
        return spans

    def _clusters(self, failed: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Yield groups of failures that belong together: first, last and count."""
        for _, group in groupby(self._numbered(failed), itemgetter(0)):
            members = [index for _, index in group]
            yield members[0], members[-1], len(members)

    def _numbered(self, failed: Sequence[int]) -> Iterator[tuple[int, int]]:
        number, before = 0, -1
        for index in failed:
            apart = self._at[index] - self._at[before] if before >= 0 else 0.0
            if apart > _TOGETHER and index != before + 1:
                number += 1
            before = index
            yield number, index

    def _end(self, last: int) -> float:
        low = self._at[last]
        if last + 1 == len(self._at):
            return low + self._log.latency[last]
        return low + self._turning * (self._at[last + 1] - low)


def _image_cost(log: RouteLog, model: str) -> float:
    """Return the cost of one image: as recorded, else by the model table, else 0."""
    known = [cost for cost in log.cost if not math.isnan(cost)]
    if known:
        return median(known)
    usage = TokenUsage(input_tokens=0, output_tokens=_ASSUMED_TOKENS)
    return cost_usd(model, usage, "2K") or 0.0
