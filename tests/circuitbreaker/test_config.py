"""The breaker's configuration is validated when it is created."""

from __future__ import annotations

import math
from typing import Any

import pytest

from resilient_imagen.circuitbreaker import BreakerConfig, BreakerMode


def test_defaults_are_the_documented_ones() -> None:
    """The defaults equal those of the settings."""
    config = BreakerConfig()

    assert config == BreakerConfig(
        mode=BreakerMode.ON,
        fail_max=3,
        failure_rate=0.5,
        window=300.0,
        min_calls=6,
        slow_call=None,
        reset_timeout=60.0,
        reset_factor=5.0,
        reset_max=600.0,
        half_open_calls=1,
        probe_deadline=61.0,
    )


@pytest.mark.parametrize("name", ["fail_max", "min_calls", "half_open_calls"])
@pytest.mark.parametrize("value", [0, -3, 1.0, True, "3", None])
def test_counts_are_whole_and_positive(name: str, value: Any) -> None:
    """A count that is not an integer of 1 or more is rejected by name."""
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number of 1 or more, not"):
        BreakerConfig(**{name: value})


@pytest.mark.parametrize(
    "name", ["window", "reset_timeout", "reset_max", "probe_deadline", "slow_call"]
)
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_seconds_are_finite_and_positive(name: str, value: Any) -> None:
    """A time that is not a finite number above 0 is rejected by name."""
    with pytest.raises(ValueError, match=rf"^{name} must be a finite number of seconds above 0"):
        BreakerConfig(**{name: value})


@pytest.mark.parametrize("value", [0, -0.1, 1.0001, math.nan])
def test_failure_rate_is_a_share(value: float) -> None:
    """A failure rate of 0, or outside of 0 to 1, is rejected."""
    with pytest.raises(ValueError, match=r"^failure_rate must be above 0 and at most 1, not"):
        BreakerConfig(failure_rate=value)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_reset_factor_is_finite_and_not_negative(value: float) -> None:
    """A reset factor below 0, infinite or not a number is rejected."""
    with pytest.raises(ValueError, match=r"^reset_factor must be a finite number of 0 or more, no"):
        BreakerConfig(reset_factor=value)


def test_the_smallest_and_largest_values_are_allowed() -> None:
    """The bounds of each value are accepted."""
    config = BreakerConfig(
        fail_max=1,
        min_calls=1,
        half_open_calls=1,
        failure_rate=1,
        reset_timeout=5,
        reset_factor=0,
        reset_max=5,
    )

    assert config.reset_max == config.reset_timeout


def test_reset_max_is_not_below_reset_timeout() -> None:
    """A reset_max below reset_timeout is rejected."""
    with pytest.raises(ValueError, match=r"^reset_max \(9\.0 s\) must not be below reset_timeout"):
        BreakerConfig(reset_timeout=10.0, reset_max=9.0)


def test_mode_may_be_given_by_its_word() -> None:
    """A mode given as a str is converted, and an unknown one is rejected."""
    config = BreakerConfig(mode="shadow")  # type: ignore[arg-type]

    assert config.mode is BreakerMode.SHADOW
    with pytest.raises(ValueError, match="sometimes"):
        BreakerConfig(mode="sometimes")  # type: ignore[arg-type]
