"""Run metrics: the measures of a run, by which settings are compared."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_imagen.circuitbreaker import BreakerState
from resilient_imagen.reasons import Reason
from resilient_imagen.tuning.outcome_model import fails
from resilient_imagen.tuning.simulation_run import SimulationResult

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from resilient_imagen.tuning.outcome_model import Incident
    from resilient_imagen.tuning.simulation_run import Change, SimulatedAttempt

__all__ = ["Measures", "measure"]

_AFTERMATH = 65.0
"""Seconds after an incident in which an opening belongs to it: its requests may end late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The measures of one run. Times are in seconds, costs in US dollars."""

    calls: int
    images: int
    mean_s: float
    """Average time to the image, of all images."""
    p50_s: float
    p95_s: float
    p99_s: float
    lost_s: float
    """Total time of calls without an image."""
    share: Mapping[str, float]
    """Share of the images by route."""
    requests: int
    wasted_requests: int
    """Requests that failed because of the service."""
    unused: int
    """Requests of calls that another request served: cancelled, or with an image too late."""
    wasted_s: float
    wasted_usd: float
    """Cost of the wasted requests; abandoned requests are billed, too."""
    cost_usd: float
    """Cost of all requests."""
    incidents: int
    """Incidents of the first route."""
    detected: int
    """Incidents of the first route in which its breaker opened."""
    detect_s: float | None
    """Average time from an incident's start to the opening; None if none was detected."""
    recover_s: float | None
    """Average time from an incident's end to the first image requested from the first route."""
    false_openings: int
    """Openings of the first route's breaker outside all incidents."""
    extrapolated_share: float
    """Share of the requests with an assumed outcome."""

    @property
    def lost_calls(self) -> int:
        """Calls without an image."""
        return self.calls - self.images

    @property
    def primary_share(self) -> float:
        """Share of the images that the first route delivered."""
        return next(iter(self.share.values()))

    @property
    def cost_usd_per_image(self) -> float:
        """Dollars per image, including wasted requests."""
        return self.cost_usd / self.images if self.images else 0.0


def measure(
    played: SimulationResult,
    incidents: Sequence[Incident],
    calls: Collection[int] | None = None,
) -> Measures:
    """Return the measures of a run, or of some of its calls.

    Args:
        played: The run.
        incidents: The incidents of its first route.
        calls: The numbers of the calls that count, in order; None means all. Measures about
            incidents and the breaker are those of the whole run.
    """
    changes = played.changes
    if calls is not None:
        played = _part(played, calls)
    times = sorted(
        seconds for seconds, route in zip(played.seconds, played.served, strict=True) if route >= 0
    )
    images = len(times)
    wasted = [sent for sent in played.sent if fails(sent.reason)]
    detected = _detections(changes, incidents)
    back = _recoveries(played, incidents)
    return Measures(
        calls=len(played.started),
        images=images,
        mean_s=sum(times) / images if images else 0.0,
        p50_s=_quantile(times, 0.50),
        p95_s=_quantile(times, 0.95),
        p99_s=_quantile(times, 0.99),
        lost_s=sum(played.seconds) - sum(times),
        share={
            name: played.served.count(index) / images if images else 0.0
            for index, name in enumerate(played.routes)
        },
        requests=len(played.sent),
        wasted_requests=len(wasted),
        unused=_unused(played.sent, images),
        wasted_s=sum(sent.seconds for sent in wasted),
        wasted_usd=sum(sent.cost_usd for sent in wasted),
        cost_usd=sum(sent.cost_usd for sent in played.sent),
        incidents=len(incidents),
        detected=len(detected),
        detect_s=sum(detected) / len(detected) if detected else None,
        recover_s=sum(back) / len(back) if back else None,
        false_openings=_false_openings(changes, incidents),
        extrapolated_share=sum(not sent.seen for sent in played.sent) / max(1, len(played.sent)),
    )


def _unused(sent: Sequence[SimulatedAttempt], images: int) -> int:
    delivered = sum(each.reason is None for each in sent)
    return delivered - images + sum(each.reason is Reason.CANCELLED for each in sent)


def _part(played: SimulationResult, calls: Collection[int]) -> SimulationResult:
    among = frozenset(calls)
    return SimulationResult(
        routes=played.routes,
        started=array("d", [played.started[call] for call in calls]),
        seconds=array("d", [played.seconds[call] for call in calls]),
        served=array("b", [played.served[call] for call in calls]),
        sent=[sent for sent in played.sent if sent.call in among],
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _openings(changes: Sequence[Change]) -> list[float]:
    return [
        change.at for change in changes if change.route == 0 and change.state is BreakerState.OPEN
    ]


def _detections(changes: Sequence[Change], incidents: Sequence[Incident]) -> list[float]:
    """Return the seconds to the first opening in each incident; 0 if it was open already."""
    states = [(change.at, change.state) for change in changes if change.route == 0]
    times = [at for at, _ in states]
    found = []
    for span in incidents:
        before = bisect_right(times, span.start)
        if before and states[before - 1][1] is not BreakerState.CLOSED:
            found.append(0.0)
            continue
        for at, state in states[before:]:
            if at > span.end + _AFTERMATH:
                break
            if state is BreakerState.OPEN:
                found.append(at - span.start)
                break
    return found


def _recoveries(played: SimulationResult, incidents: Sequence[Incident]) -> list[float]:
    """Return the seconds from each incident's end to the first successful request sent after it.

    If the next incident begins before, the time ends there.
    """
    good = sorted(sent.at for sent in played.sent if sent.route == 0 and sent.reason is None)
    found = []
    for index, span in enumerate(incidents):
        nth = bisect_left(good, span.end)
        following = incidents[index + 1].start if index + 1 < len(incidents) else None
        if nth < len(good) and (following is None or good[nth] <= following):
            found.append(good[nth] - span.end)
        elif following is not None:
            found.append(following - span.end)
    return found


def _false_openings(changes: Sequence[Change], incidents: Sequence[Incident]) -> int:
    starts = [span.start for span in incidents]
    false = 0
    for at in _openings(changes):
        index = bisect_right(starts, at) - 1
        false += index < 0 or at > incidents[index].end + _AFTERMATH
    return false
