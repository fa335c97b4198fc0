"""Settings that should be the same in all processes, as text, and the differences between two."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker.config import BreakerConfig

__all__ = ["breaker_differences", "breaker_settings"]

_SHARED: Final = (
    "mode",
    "fail_max",
    "failure_rate",
    "window",
    "min_calls",
    "slow_call",
    "reset_timeout",
    "reset_factor",
    "reset_max",
    "half_open_calls",
)
_WORD: Final = re.compile(r"([a-z_]{1,20})=([0-9.e+-]{1,20}|on|off|shadow|none)")


def breaker_settings(config: BreakerConfig) -> str:
    """Return the settings of a breaker as ``name=value`` words."""
    return " ".join(f"{name}={_text(getattr(config, name))}" for name in _SHARED)


def breaker_differences(mine: str, others: str) -> str:
    """Describe how another process's settings differ; empty if they do not."""
    if mine == others:
        return ""
    own = dict(word.split("=") for word in mine.split())
    known = [found.groups() for found in map(_WORD.fullmatch, others.split()) if found]
    return ", ".join(
        f"IMAGE_GEN_BREAKER_{name.upper()} is {own[name]} here and {value} there"
        for name, value in known
        if name in own and own[name] != value
    )


def _text(value: float | str | None) -> str:
    return "none" if value is None else value if isinstance(value, str) else f"{value:g}"
