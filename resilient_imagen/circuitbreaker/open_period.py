"""How long the breaker stays open: open periods and the computation of their lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.reasons import POLICIES, BreakerOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.circuitbreaker.config import BreakerConfig

__all__ = [
    "MAX_HINT",
    "NO_CAUSE",
    "OpenPeriod",
    "TripCause",
    "hint_duration",
    "is_fatal",
    "longest_duration",
    "open_duration",
    "trip_duration",
    "valid_hint",
]

MAX_HINT: Final = 86_400.0
"""Seconds; a longer hint of a server is reduced to one day."""
_ABSURD: Final = 31 * MAX_HINT
"""Seconds; a longer hint is a mistake, such as a timestamp in place of a duration."""
_JITTER: Final = 0.1
_ROUNDING: Final = 0.001
"""Seconds by which a period may grow when another process reports it."""
_FATAL: Final = frozenset(
    str(reason) for reason, policy in POLICIES.items() if policy.verdict is BreakerOutcome.TRIP
)


class TripCause(NamedTuple):
    """A failure as the breaker remembers it, if this failure opens the breaker."""

    cause: str | None = None
    summary: str | None = None
    origin: object | None = None
    retry_after: float | None = None


NO_CAUSE: Final = TripCause()


class OpenPeriod(NamedTuple):
    """Start, end and cause of an open period. It is kept until the breaker closes."""

    since: float
    until: float
    cause: TripCause
    closes: bool = False
    """Whether the breaker closes at the end; otherwise the next caller becomes a probe."""


def is_fatal(cause: str | None) -> bool:
    """Return whether a cause is a fatal failure, which waiting does not cure: a key, a quota."""
    return cause in _FATAL


def valid_hint(seconds: object) -> float | None:
    """Return a server's hint in seconds, at most MAX_HINT.

    Returns:
        None for zero, a negative or unreasonably large number, NaN, infinity, or another type.
    """
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return None
    return min(float(seconds), MAX_HINT) if 0 < seconds <= _ABSURD else None


def open_duration(
    config: BreakerConfig, probe_cost: float, hint: float | None, random: Callable[[], float]
) -> float:
    """Return the length of an open period that failures or a failed probe cause.

    It is `reset_factor` times the cost of the failed probe, at least `reset_timeout` and at most
    `reset_max`, and jitter adds up to 10 %. A service that fails in a moment is probed often; one
    that hangs is probed for at most the share 1 / (1 + `reset_factor`) of the time, as far as
    `reset_max` allows. A server's hint can only lengthen the period, and is honoured up to
    `reset_max`.

    Args:
        config: The breaker's settings.
        probe_cost: Seconds from the sending of the probe to its failure; 0 if no probe failed.
        hint: Seconds that the server asked to wait, or None.
        random: Returns 0 to 1 for the jitter.
    """
    wanted = max(config.reset_timeout, config.reset_factor * probe_cost)
    base = min(wanted, config.reset_max)
    return max(_jittered(base, random), min(hint or 0.0, config.reset_max))


def hint_duration(config: BreakerConfig, hint: float | None) -> float:
    """Return the length of an open period that only a server's hint causes, without jitter."""
    return min(hint or 0.0, config.reset_max)


def trip_duration(config: BreakerConfig, hint: float | None, random: Callable[[], float]) -> float:
    """Return the length of an open period that a fatal failure causes: `reset_max` with jitter.

    A hint that is longer than `reset_max` is used unchanged instead, up to 24 hours.
    """
    if hint is not None and hint > config.reset_max:
        return max(min(hint, MAX_HINT), config.reset_max)
    return _jittered(config.reset_max, random)


def longest_duration(config: BreakerConfig, cause: str | None) -> float:
    """Return the maximum length of an open period of this cause, in any process."""
    longest = config.reset_max * (1.0 + _JITTER) + _ROUNDING
    return max(longest, MAX_HINT) if is_fatal(cause) else longest


def _jittered(seconds: float, random: Callable[[], float]) -> float:
    return seconds * (1.0 + _JITTER * random())
