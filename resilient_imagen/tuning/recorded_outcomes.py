"""Recorded outcomes: the outcome model of a recording.

A request has the outcome of the recorded request at about the same time on the same route. Where
none was recorded (the breaker was open, or the route was not needed), its outcome is an assumption:

- Whether it fails is drawn with the failure rate of the regime at that time (`RegimePaths`). One
  path of regimes is drawn for each ``draw``, so that several draws show how much is unknown.
- A failure or a response is one of the recorded ones nearest in time, of an incident or of a
  healthy route, as the regime is. A response before or after an outage is not one inside it.
- An abandoned request had no response by then, so only a lower bound of its latency is known. With
  a longer timeout it has the outcome of a nearby request that took longer (the weights of Kaplan
  and Meier, by redistribution to the right). Beyond the longest one, responses continue at the rate
  of the late ones; without any, there is no response.
- A route without recorded requests responds like a healthy one, after `ASSUMED_LATENCY` seconds.

A recording does not show how the service would have reacted to more or fewer requests. It does not
show either which failures, apart from a rejected key, concerned the whole account and so its other
models; none are assumed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import compress, groupby, pairwise
from operator import itemgetter
from statistics import median
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from resilient_imagen.pipeline.hedge import KEPT_FOR
from resilient_imagen.reasons import Reason
from resilient_imagen.tuning.outcome_model import NEVER, Incident, SimulatedOutcome
from resilient_imagen.tuning.prices import image_cost
from resilient_imagen.tuning.recording import IMAGE, REASONS, RouteLog
from resilient_imagen.tuning.regimes import HEALTHY, RegimePath, RegimePaths

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.outcome_model import DeterministicRng, SimulatedRequest
    from resilient_imagen.tuning.recording import Recording

__all__ = ["ASSUMED_LATENCY", "RecordedOutcomes"]

ASSUMED_LATENCY: Final = 30.0
"""Latency in seconds of a route without recorded requests."""

_SAME: Final = 30.0
"""Maximum seconds between a request and the recorded one whose outcome it has."""
_AT_ONCE: Final = 1.0
"""The same, for requests in bursts."""
_GAP: Final = 30.0
"""Minimum seconds between two recorded requests for the time between them to count as unseen."""
_TOGETHER: Final = 120.0
"""Maximum seconds between two failures of one incident, if a request succeeded in between."""
_MANY: Final = 3
"""Minimum failures of an incident."""
_SUCCESSES: Final = 3
"""Minimum requests that succeed in a row between two incidents that are near each other."""
_LASTING: Final = 10.0
"""Minimum seconds between the failures of an incident with only two."""
_NEAREST: Final = 10
"""Recorded requests before, and after, from which an outcome is drawn."""
_FAR: Final = 1800.0
"""Maximum seconds from these requests."""
_TAIL: Final = 40
"""The same for the latency of a slow request, which few exceed."""
_FAILS, _DONOR, _TAIL_WAIT, _LONGER = range(4)  # salts of random numbers


class RecordedOutcomes:
    """The outcome model of a recording.

    Args:
        recording: The recording.
        settings: The settings with the routes and timeouts.
        draw: Number of the draw of what is not recorded. Equal draws are equal under all settings.
    """

    def __init__(self, recording: Recording, settings: Settings, *, draw: int = 0) -> None:
        self._routes = []
        for route in settings.accounts:
            log = recording.routes.get(route.key, RouteLog())
            cost, patience = image_cost(route, settings, log), _patience(settings, route.provider)
            self._routes.append(_Route(log, cost, patience, recording.duration, draw))

    def outcome_for(self, ask: SimulatedRequest) -> SimulatedOutcome:
        """Return the outcome of the recorded request at about that time, or an assumption."""
        return self._routes[ask.route].outcome_for(ask)

    def incidents(self) -> Sequence[Incident]:
        """Return the incidents of the first route."""
        return self._routes[0].incidents()


class _Route:
    def __init__(
        self, log: RouteLog, image_cost: float, patience: float, duration: float, draw: int
    ) -> None:
        self._at = log.at
        self._log = log
        self._patience = patience
        self._image_cost = image_cost
        if log.at:
            evidence = _Evidence.of(log, duration)
            self._same = evidence.same
            self._path = evidence.paths.path(draw)
            self._donors = [
                _Donors(log.at, indexes, self._path)
                for indexes in (evidence.responses, evidence.failures)
            ]

    def outcome_for(self, ask: SimulatedRequest) -> SimulatedOutcome:
        if not self._at:
            return SimulatedOutcome(None, ASSUMED_LATENCY, None, self._image_cost, seen=False)
        coin = ask.coin
        index = self._recorded(ask)
        if index is not None:
            return self._as_recorded(index, coin, seen=True)
        seen = self._is_covered(ask.at)
        regime = self._path.at(ask.at)
        fails_here = coin.unit(_FAILS) < self._path.rates[regime]
        donors = self._donors[fails_here].near(ask.at, regime) or [self._nearest(ask.at)]
        return self._as_recorded(donors[int(coin.unit(_DONOR) * len(donors))], coin, seen=seen)

    # -- the recorded request ------------------------------------------------------------------

    def _recorded(self, ask: SimulatedRequest) -> int | None:
        """Return the recorded request at about that time; a retry is not the one it repeats."""
        index = self._nearest(ask.at)
        if ask.before is not None and index == self._nearest(ask.before):
            index = self._next_nearest(ask.at, index)
            if index == self._nearest(ask.before):
                return None
        return index if abs(self._at[index] - ask.at) <= self._same else None

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

    def _is_covered(self, at: float) -> bool:
        """Return whether requests were recorded shortly before and after."""
        later = bisect_left(self._at, at)
        return 0 < later < len(self._at) and self._at[later] - self._at[later - 1] <= _GAP

    # -- its outcome ---------------------------------------------------------------------------

    def _as_recorded(self, index: int, coin: DeterministicRng, *, seen: bool) -> SimulatedOutcome:
        log = self._log
        latency, number = log.latency[index], log.reason[index]
        if log.given_up[index]:
            if self._patience <= latency:
                return self._no_response(seen=seen)
            return self._had_we_waited(index, coin)
        if number == IMAGE:
            cost = log.cost[index]
            return SimulatedOutcome(
                None, latency, None, self._image_cost if math.isnan(cost) else cost, seen
            )
        hint = log.hint[index]
        return SimulatedOutcome(
            REASONS[number], latency, None if math.isnan(hint) else hint, 0.0, seen
        )

    def _had_we_waited(self, index: int, coin: DeterministicRng) -> SimulatedOutcome:
        """Return the outcome of a nearby request that took longer, or extrapolate.

        If that one was abandoned, too, the same is asked about it.
        """
        log = self._log
        nearby = range(max(0, index - _TAIL), min(len(log), index + _TAIL + 1))
        salt = _LONGER
        while log.given_up[index]:
            if self._patience <= log.latency[index]:
                return self._no_response()
            longer = [each for each in nearby if log.latency[each] > log.latency[index]]
            if not longer and REASONS[log.reason[index]] is not Reason.TIMEOUT:
                # The caller left later than any response nearby took, so a response was due.
                longer = [each for each in nearby if not log.given_up[each]]
            if not longer:
                return self._extrapolated(index, nearby, coin)
            index = longer[int(coin.unit(salt) * len(longer))]
            salt += 1
        return self._as_recorded(index, coin, seen=False)

    def _extrapolated(
        self, index: int, nearby: Sequence[int], coin: DeterministicRng
    ) -> SimulatedOutcome:
        """Return an outcome later than all that were recorded nearby.

        Responses continue at the rate at which they came after the time limit. Without any, or if
        all requests nearby were cancelled, the service hung, and no response would have come.
        """
        log = self._log
        limit = min(
            (
                log.latency[each]
                for each in nearby
                if log.given_up[each] and REASONS[log.reason[each]] is Reason.TIMEOUT
            ),
            default=math.inf,
        )
        late = [each for each in nearby if log.latency[each] >= limit]
        answered = [each for each in late if not log.given_up[each]]
        if not answered:
            return self._no_response()
        waited = sum(log.latency[each] - limit for each in late)
        more = -math.log(1.0 - coin.unit(_TAIL_WAIT)) * waited / len(answered)
        donor = answered[int(coin.unit(_DONOR) * len(answered))]
        found = self._as_recorded(donor, coin, seen=False)
        return found._replace(latency=log.latency[index] + more)

    def _no_response(self, *, seen: bool = False) -> SimulatedOutcome:
        return SimulatedOutcome(Reason.TIMEOUT, NEVER, None, self._image_cost, seen)

    # -- incidents -----------------------------------------------------------------------------

    def incidents(self) -> Sequence[Incident]:
        """Return intervals with at least three failures that are a third of the requests or more.

        Two failures are sufficient if no request succeeded in between. Failures less than two
        minutes apart are one group. A group in which too few requests failed is divided where three
        requests in a row succeeded, and each part with three failures in a row is an incident. So
        short outages with a minute of images between them are found, too. An incident ends at the
        middle between its last failure and the next image.
        """
        log = self._log
        failed = [index for index in range(len(log)) if log.failed(index)]
        spans = []
        for group in self._groups(failed):
            parts = [group] if self._is_incident(group) else filter(_has_series, _parts(group))
            spans += [Incident(self._at[part[0]], self._end(part[-1])) for part in parts]
        return spans

    def _is_incident(self, group: Sequence[int]) -> bool:
        """Return whether a whole group of failures is one incident."""
        first, last, count = group[0], group[-1], len(group)
        between = last - first + 1
        lasting = self._at[last] - self._at[first] >= _LASTING
        return (count >= _MANY and count * 3 >= between) or (count == between > 1 and lasting)

    def _groups(self, failed: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield the failures that are near each other."""
        for _, group in groupby(self._numbered(failed), itemgetter(0)):
            yield [index for _, index in group]

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
        return low + 0.5 * (self._at[last + 1] - low)


def _parts(group: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the failures of a group between which fewer than three requests succeeded in a row."""
    start = 0
    for place, (before, after) in enumerate(pairwise(group), 1):
        if after - before > _SUCCESSES:
            yield group[start:place]
            start = place
    yield group[start:]


def _has_series(part: Sequence[int]) -> bool:
    """Return whether three failures follow each other directly."""
    pairs = zip(part, part[_MANY - 1 :], strict=False)
    return any(last - first == _MANY - 1 for first, last in pairs)


def _patience(settings: Settings, provider: str) -> float:
    """Return the seconds after which a request to a provider is abandoned at the latest."""
    return settings.timeout_for(provider) * (KEPT_FOR if settings.on_timeout == "keep" else 1.0)


class _Donors:
    """Recorded requests from which an outcome is drawn: all failures, or all responses."""

    def __init__(self, times: Sequence[float], indexes: Sequence[int], path: RegimePath) -> None:
        troubled = [path.at(times[index]) != HEALTHY for index in indexes]
        self._by_health = [
            _ByTime(times, list(compress(indexes, map(wanted.__eq__, troubled))))
            for wanted in (True, False)
        ]
        self._all = _ByTime(times, indexes)

    def near(self, at: float, regime: int) -> Sequence[int]:
        """Return the nearest requests: of an incident or of a healthy route, as the regime is.

        Without one within `_FAR`, the health of the route does not matter.
        """
        return self._by_health[regime == HEALTHY].nearest(at, _FAR) or self._all.nearest(at)


class _ByTime:
    """Some recorded requests, by time."""

    def __init__(self, times: Sequence[float], indexes: Sequence[int]) -> None:
        self._indexes = indexes
        self._at = [times[index] for index in indexes]

    def nearest(self, at: float, within: float = math.inf) -> Sequence[int]:
        """Return the requests nearest in time, before and after."""
        later = bisect_left(self._at, at)
        first = max(later - _NEAREST, bisect_left(self._at, at - within), 0)
        last = min(later + _NEAREST, bisect_left(self._at, at + within))
        return self._indexes[first:last]


class _Evidence:
    """The parts of a route's model that are equal under all settings, computed once."""

    _known: Final[WeakKeyDictionary[RouteLog, _Evidence]] = WeakKeyDictionary()

    def __init__(self, log: RouteLog, duration: float) -> None:
        self.failures = [index for index in range(len(log)) if log.failed(index)]
        failed = set(self.failures)
        neutral = {index for index in range(len(log)) if _says_nothing(log, index)}
        self.responses = [index for index in range(len(log)) if index not in failed]
        self.paths = RegimePaths(
            ((at, index in failed) for index, at in enumerate(log.at) if index not in neutral),
            duration,
        )
        apart = [later - earlier for earlier, later in pairwise(log.at)]
        self.same = min(_SAME, max(_AT_ONCE, median(apart) / 2)) if apart else _SAME

    @classmethod
    def of(cls, log: RouteLog, duration: float) -> _Evidence:
        if log not in cls._known:
            cls._known[log] = cls(log, duration)
        return cls._known[log]


def _says_nothing(log: RouteLog, index: int) -> bool:
    """Return whether a request ended before it was known whether it would fail."""
    return bool(log.given_up[index]) and not log.failed(index)
