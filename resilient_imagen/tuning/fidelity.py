"""Fidelity: whether the replay of the present settings gives what was recorded.

If it does not, the replayed settings are not those of the application, or it did something that a
replay does not know of. Then no recommendation can be trusted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Final

from resilient_imagen.effective_settings import variable_of
from resilient_imagen.reasons import Reason
from resilient_imagen.tuning.recording import IMAGE, REASONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.recording import Recording, RouteLog
    from resilient_imagen.tuning.result import Metrics

__all__ = ["TOLERANCE", "Deviation", "Fidelity", "Hint", "compare", "distance"]

TOLERANCE: Final[Mapping[str, tuple[float, float]]] = {
    "mean_s": (0.15, 2.0),
    "p50_s": (0.15, 2.0),
    "p95_s": (0.25, 5.0),
    "primary_share": (0.0, 0.06),
    "wasted_requests": (0.30, 6.0),
    "lost_calls": (0.30, 3.0),
}
"""The difference that is allowed: as a share of what was recorded, and at least absolutely. Of few
calls, shares and quantiles may differ more, by `_SMALL` divided by the root of their number."""
_SMALL: Final = 1.2

_MINUTE: Final = 60.0
_PACE_SLACK: Final = 1.15
_AT_ONCE: Final = 0.1
"""Minimum seconds for which two requests overlap that are in flight at once."""
_NEAR: Final = 0.1
"""Relative difference of two durations that are the same."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """A measure whose replay differs from what was recorded by more than is allowed."""

    metric: str
    recorded: float
    replayed: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Hint:
    """A setting that the recording contradicts, and why."""

    variable: str
    value: str
    """The value that the recording suggests; empty if it suggests none."""
    why: str


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The comparison of what was recorded with the replay of the same settings."""

    deviations: tuple[Deviation, ...]
    hints: tuple[Hint, ...]

    @property
    def matches(self) -> bool:
        """Whether the replay gives what was recorded, so that other replays can be trusted."""
        return not self.deviations


def compare(
    recorded: Metrics, replayed: Metrics, recording: Recording, settings: Settings
) -> Fidelity:
    """Compare what was recorded with the replay of the same settings.

    Args:
        recorded: The measures of what was recorded.
        replayed: The measures of the replay.
        recording: The recording.
        settings: The settings that were replayed.
    """
    deviations = tuple(_deviations(recorded, replayed, len(recording.asked)))
    hints = tuple(_contradictions(recording, settings)) if deviations else ()
    return Fidelity(deviations, hints)


def distance(recorded: Metrics, replayed: Metrics, calls: int) -> float:
    """Return how far a replay is from what was recorded; below 1 if every difference is allowed."""
    return max(
        difference / one.allowed for one, difference in _differences(recorded, replayed, calls)
    )


def _deviations(recorded: Metrics, replayed: Metrics, calls: int) -> Iterator[Deviation]:
    for one, difference in _differences(recorded, replayed, calls):
        if difference > one.allowed:
            yield one


def _differences(
    recorded: Metrics, replayed: Metrics, calls: int
) -> Iterator[tuple[Deviation, float]]:
    few = _SMALL / max(1, calls) ** 0.5
    before, after = dict(recorded.items()), dict(replayed.items())
    for name, (share, least) in TOLERANCE.items():
        happened, again = before[name].value, after[name]
        floor = max(least, few) if name == "primary_share" else least
        allowed = max(floor, max(share, few) * happened)
        difference = max(again.low - happened, happened - again.high, 0.0)
        yield Deviation(name, happened, again.value, allowed), difference


# -- settings that the recording contradicts ------------------------------------------------------


def _contradictions(recording: Recording, settings: Settings) -> Iterator[Hint]:
    keys = {route.key for route in settings.accounts}
    missing = [name for name, log in recording.routes.items() if len(log) and name not in keys]
    if missing:
        routes = ",".join(recording.routes)
        why = f"requests to {', '.join(missing)} were recorded, which is not among the routes"
        yield Hint(variable_of("routes"), routes, why)
    by_provider: dict[str, list[RouteLog]] = {}
    for name, log in recording.routes.items():
        by_provider.setdefault(name.partition(":")[0], []).append(log)
    for provider, logs in by_provider.items():
        yield from _too_many_at_once(provider, logs, settings)
        yield from _too_fast(provider, logs, settings)
        yield from _other_limit(provider, logs, settings)
    yield from _deadline(recording, settings)
    yield from _breaker(recording, settings)


def _too_many_at_once(provider: str, logs: list[RouteLog], settings: Settings) -> Iterator[Hint]:
    allowed, limit = settings.max_concurrent_for(provider), settings.timeout_for(provider)
    changes = Counter[float]()
    for log in logs:
        for at, latency in zip(log.at, log.latency, strict=True):
            changes[at] += 1
            changes[at + max(0.0, min(latency, limit) - _AT_ONCE)] -= 1
    most = now = 0
    for at in sorted(changes):
        now += changes[at]
        most = max(most, now)
    if most > allowed:
        why = f"{most} requests to {provider} were in flight at once, and {allowed} are allowed"
        yield Hint(variable_of("max_concurrent"), str(most), why)


def _too_fast(provider: str, logs: list[RouteLog], settings: Settings) -> Iterator[Hint]:
    times = sorted(at for log in logs for at in log.at)
    most = max((bisect_left(times, at + _MINUTE) - i for i, at in enumerate(times)), default=0)
    allowed = settings.ipm_for(provider)
    if most > (allowed + settings.burst) * _PACE_SLACK:
        why = (
            f"{most} requests to {provider} were sent within a minute, and {allowed:g} are allowed"
        )
        yield Hint(variable_of("ipm"), str(most), why)


def _other_limit(provider: str, logs: list[RouteLog], settings: Settings) -> Iterator[Hint]:
    limit = settings.timeout_for(provider)
    ended = [
        log.latency[index]
        for log in logs
        for index in range(len(log))
        if log.given_up[index] and REASONS[log.reason[index]] is Reason.TIMEOUT
    ]
    short = [seconds for seconds in ended if seconds < limit * (1 - _NEAR)]
    if len(short) * 2 > len(ended) and len(short) > 1:
        usual = median(short)
        why = (
            f"requests to {provider} were given up after {usual:g} s, and the limit is {limit:g} s"
        )
        yield Hint(settings.timeout_variable(provider), f"{usual:g}", why)


def _deadline(recording: Recording, settings: Settings) -> Iterator[Hint]:
    if settings.deadline is not None:
        return
    cut = sum(
        number != IMAGE and REASONS[number] is Reason.DEADLINE
        for log in recording.routes.values()
        for number in log.reason
    )
    if cut:
        lost = [took for took, by in zip(recording.took, recording.served, strict=True) if by < 0]
        value = f"{median(lost):.0f}" if lost else ""
        why = f"{cut} requests were ended by a deadline, and none is set"
        yield Hint(variable_of("deadline"), value, why)


def _breaker(recording: Recording, settings: Settings) -> Iterator[Hint]:
    """Compare the failures before each opening, and the length of open periods."""
    log = recording.routes.get(settings.accounts[0].key)
    if log is None:
        return
    if not log.rejected:
        failed = _longest_series(log)
        if settings.breaker_mode == "on" and failed > settings.breaker_fail_max + 8:
            why = f"{failed} requests failed in a row, and no call was rejected"
            yield Hint(variable_of("breaker_mode"), "shadow", why)
        return
    if settings.breaker_mode != "on":
        why = f"its breaker rejected {len(log.rejected)} calls"
        yield Hint(variable_of("breaker_mode"), "on", why)
        return
    open_for = sorted(_open_periods(log))
    if not open_for:
        return
    shortest = open_for[len(open_for) // 10]
    usual = settings.breaker_settings(settings.accounts[0].provider)["reset_timeout"]
    if shortest < usual * (1 - _NEAR):
        why = f"a probe was sent {shortest:.1f} s after the circuit had opened, not {usual:g} s"
        yield Hint(variable_of("breaker_reset_timeout"), f"{shortest:.2g}", why)


def _longest_series(log: RouteLog) -> int:
    longest = now = 0
    for index in range(len(log)):
        now = now + 1 if log.failed(index) else 0
        longest = max(longest, now)
    return longest


def _open_periods(log: RouteLog) -> Iterator[float]:
    """Yield the seconds from each opening, a failure before rejections, to the next request."""
    for earlier, later in pairwise(range(len(log))):
        opened = log.at[earlier] + log.latency[earlier]
        first = bisect_left(log.rejected, log.at[earlier])
        if (
            first < len(log.rejected)
            and log.rejected[first] < log.at[later]
            and log.failed(earlier)
        ):
            yield log.at[later] - opened
