"""The breaker's numbers, checked once, so that nothing behind them has to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["BreakerConfig", "BreakerMode"]


class BreakerMode(StrEnum):
    """What the breaker's decisions are used for."""

    ON = "on"
    """Decides and rejects."""
    OFF = "off"
    """Lets everything through and counts nothing."""
    SHADOW = "shadow"
    """Decides and reports what it would have done; lets everything through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """When a breaker opens, for how long, and what closes it again.

    It opens after `fail_max` failures in a row, or when at least `min_calls` calls ended within the
    last `window` seconds and at least `failure_rate` of them failed. Only a failure opens it: the
    rules are looked at when one is counted, never at a success.

    Raises:
        ValueError: A number is out of range; the text names it and what is allowed.
    """

    mode: BreakerMode = BreakerMode.ON
    fail_max: int = 3
    """Failures in a row that open it, 1 or more."""
    failure_rate: float = 0.5
    """Share of the calls in the window, above 0 and at most 1."""
    window: float = 300.0
    """Seconds. An outcome leaves the count when it is between 59/60 of this and all of it old."""
    min_calls: int = 6
    """Calls in the window below which the rate says nothing, 1 or more."""
    slow_call: float | None = None
    """Seconds after which a request counts as failed, even one still in flight; None: never."""
    reset_timeout: float = 60.0
    """Seconds the first opening lasts; doubles with each failed round of probes. Up to 10 % of
    jitter comes on top of every opening that this breaker times itself."""
    reset_max: float = 600.0
    """Seconds the doubling stops at (the jitter still comes on top)."""
    half_open_calls: int = 1
    """Probes at a time, and the successes that close it, 1 or more."""
    probe_deadline: float = 61.0
    """Seconds a probe may take, from its sending, before it is taken as failed; also the seconds
    it may be held in a queue, unsent, before its place goes to the next caller."""

    def __post_init__(self) -> None:
        """Check every number."""
        object.__setattr__(self, "mode", BreakerMode(self.mode))
        for name in ("fail_max", "min_calls", "half_open_calls"):
            _check_count(name, getattr(self, name))
        for name in ("window", "reset_timeout", "reset_max", "probe_deadline"):
            _check_seconds(name, getattr(self, name))
        if self.slow_call is not None:
            _check_seconds("slow_call", self.slow_call)
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
