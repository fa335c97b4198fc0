"""The breaker's settings, validated once at construction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["BreakerConfig", "BreakerMode"]


class BreakerMode(StrEnum):
    """The use of the breaker's decisions."""

    ON = "on"
    """Decides, and rejects calls."""
    OFF = "off"
    """Admits all calls and counts nothing."""
    SHADOW = "shadow"
    """Admits all calls, and reports the decisions that it would have made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """Settings of a breaker: when it opens, for how long, and when it closes.

    It opens after `fail_max` consecutive failures, or when at least `min_calls` calls ended within
    the last `window` seconds and at least `failure_rate` of them failed. The rules are evaluated
    when a failure is counted, never at a success.

    Raises:
        ValueError: A value is out of range; the message names it and the allowed range.
    """

    mode: BreakerMode = BreakerMode.ON
    fail_max: int = 3
    """Consecutive failures that open it, 1 or more."""
    failure_rate: float = 0.5
    """Share of the calls in the window, above 0 and at most 1."""
    window: float = 300.0
    """Seconds. An outcome expires at an age between 59/60 of this and all of it."""
    min_calls: int = 6
    """Minimum number of calls in the window for the failure rate to apply, 1 or more."""
    slow_call: float | None = None
    """Seconds after which a call counts as failed, even while in flight; None: never."""
    reset_timeout: float = 60.0
    """Length of an open period in seconds; after a failed probe, the minimum. Jitter adds up to
    10 % to each open period, except to one that a server's hint determines."""
    reset_factor: float = 5.0
    """Length of an open period after a failed probe, as a multiple of that probe's duration from
    sending to failure, 0 or more. 0: always `reset_timeout`."""
    reset_max: float = 600.0
    """Maximum length of an open period in seconds, before jitter. A fatal failure opens for this
    long."""
    half_open_calls: int = 1
    """Maximum number of concurrent probes, and the number of successes that close it, 1 or more."""
    probe_deadline: float = 61.0
    """Seconds after which a sent probe counts as failed; also the seconds after which a probe that
    is still in a queue loses its place to the next caller."""

    def __post_init__(self) -> None:
        """Validate every value."""
        object.__setattr__(self, "mode", BreakerMode(self.mode))
        for name in ("fail_max", "min_calls", "half_open_calls"):
            _check_count(name, getattr(self, name))
        for name in ("window", "reset_timeout", "reset_max", "probe_deadline"):
            _check_seconds(name, getattr(self, name))
        if self.slow_call is not None:
            _check_seconds("slow_call", self.slow_call)
        if not (self.reset_factor >= 0 and math.isfinite(self.reset_factor)):
            raise ValueError(
                f"reset_factor must be a finite number of 0 or more, not {self.reset_factor!r}"
            )
        if not 0 < self.failure_rate <= 1:
            raise ValueError(
                f"failure_rate must be above 0 and at most 1, not {self.failure_rate!r}"
            )
        if self.reset_max < self.reset_timeout:
            raise ValueError(
                f"reset_max ({self.reset_max!r} s) must not be below"
                f" reset_timeout ({self.reset_timeout!r} s)"
            )


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more, not {value!r}")


def _check_seconds(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a finite number of seconds above 0, not {value!r}")
