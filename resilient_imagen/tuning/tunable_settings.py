"""Tunable settings: the values to try, and their environment variables."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from resilient_imagen.settings import Settings

__all__ = ["GRID", "TunableSettings", "neighbours", "sample"]

_FIELDS: Final[Mapping[str, tuple[str, str]]] = {
    "fail_max": ("breaker_fail_max", "IMAGE_GEN_BREAKER_FAIL_MAX"),
    "failure_rate": ("breaker_failure_rate", "IMAGE_GEN_BREAKER_FAILURE_RATE"),
    "window": ("breaker_window", "IMAGE_GEN_BREAKER_WINDOW"),
    "reset_timeout": ("breaker_reset_timeout", "IMAGE_GEN_BREAKER_RESET_TIMEOUT"),
    "reset_factor": ("breaker_reset_factor", "IMAGE_GEN_BREAKER_RESET_FACTOR"),
    "reset_max": ("breaker_reset_max", "IMAGE_GEN_BREAKER_RESET_MAX"),
    "retries": ("max_retries", "IMAGE_GEN_MAX_RETRIES"),
    "per_call_timeout": ("per_call_timeout", "IMAGE_GEN_PER_CALL_TIMEOUT"),
    "hedge_probe_after": ("hedge_probe_after", "IMAGE_GEN_HEDGE_PROBE_AFTER"),
    "hedge_after": ("hedge_after", "IMAGE_GEN_HEDGE_AFTER"),
    "on_timeout": ("on_timeout", "IMAGE_GEN_ON_TIMEOUT"),
    "max_wait": ("max_wait", "IMAGE_GEN_MAX_WAIT"),
    "mode": ("breaker_mode", "IMAGE_GEN_BREAKER_MODE"),
}
"""The environment variable of each tunable field of Settings."""


@dataclass(frozen=True, slots=True)
class TunableSettings:
    """One setting to try."""

    fail_max: int
    failure_rate: float
    window: float
    reset_timeout: float
    reset_factor: float
    reset_max: float
    retries: int
    per_call_timeout: float
    hedge_probe_after: float | None
    hedge_after: float | Literal["p95"] | None
    on_timeout: str
    max_wait: float | None
    mode: str = "on"
    """The breaker's mode; all trials have it on, the present settings may differ."""

    @classmethod
    def of(cls, settings: Settings) -> TunableSettings:
        """Return the tunable part of settings."""
        return cls(**{name: getattr(settings, field) for name, (field, _) in _FIELDS.items()})

    def applied(self, settings: Settings) -> Settings:
        """Return ``settings`` with these values, and no provider forced open."""
        turned = {_FIELDS[name][0]: value for name, value in asdict(self).items()}
        return settings.model_copy(update={**turned, "force_open": ()})

    def env_lines(self, since: TunableSettings | None = None) -> list[str]:
        """Return lines ``VARIABLE=value``; with ``since``, only the values that differ from it."""
        before = {} if since is None else asdict(since)
        return [
            f"{_FIELDS[name][1]}={_as_text(value)}"
            for name, value in asdict(self).items()
            if before.get(name) != value
        ]

    def shadow_line(self, since: TunableSettings) -> str | None:
        """Return the line that tries its breaker settings beside live ones, without effect.

        Args:
            since: The live settings.

        Returns:
            ``IMAGE_GEN_SHADOW=...`` with the values that differ, or None if the breakers are equal.
        """
        before, prefix = asdict(since), "breaker_"
        differing = [
            f"{_FIELDS[name][0].removeprefix(prefix)}={_as_text(value)}"
            for name, value in asdict(self).items()
            if name != "mode" and _FIELDS[name][0].startswith(prefix) and before[name] != value
        ]
        return f"IMAGE_GEN_SHADOW={','.join(differing)}" if differing else None

    def changed_from(self, since: TunableSettings) -> int:
        """Return the number of values that differ."""
        return len(self.env_lines(since))


def _as_text(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else format(value, "g")


GRID: Final[Mapping[str, Sequence[Any]]] = {
    "fail_max": (1, 2, 3, 5, 8),
    "failure_rate": (0.3, 0.5, 0.7),
    "window": (120.0, 300.0, 600.0),
    "reset_timeout": (15.0, 30.0, 60.0, 120.0),
    "reset_factor": (0.0, 2.0, 5.0, 10.0),
    "reset_max": (60.0, 120.0, 300.0, 600.0),
    "retries": (0, 1, 2, 3),
    "per_call_timeout": (30.0, 45.0, 60.0, 90.0, 120.0),
    "hedge_probe_after": (1.0, 3.0, 10.0, None),
    "hedge_after": (30.0, "p95", None),
    "on_timeout": ("keep", "abandon"),
    "max_wait": (10.0, 30.0, None),
}
"""The values to try, in order. None is never, and last."""


def sample(count: int, seed: int = 0) -> list[TunableSettings]:
    """Return ``count`` different random settings of the grid."""
    chance = random.Random(seed)
    found: dict[TunableSettings, None] = {}
    while len(found) < count:
        knobs = TunableSettings(*(chance.choice(values) for values in GRID.values()))
        if knobs.reset_max >= knobs.reset_timeout:
            found[knobs] = None
    return list(found)


def _next_to(value: Any, values: Sequence[Any]) -> Iterator[Any]:
    """Yield the values before and after a value in the order of the grid."""
    if value in values:
        place = values.index(value)
        yield from values[max(0, place - 1) : place]
        yield from values[place + 1 : place + 2]
        return
    numbers = [each for each in values if isinstance(each, int | float)]
    yield from [each for each in numbers if each < value][-1:]
    yield from [each for each in numbers if each > value][:1]


def neighbours(knobs: TunableSettings) -> Iterator[TunableSettings]:
    """Yield the settings with one value changed by one step on the grid; the breaker is on."""
    for name, values in GRID.items():
        for each in _next_to(getattr(knobs, name), values):
            near = replace(knobs, mode="on", **{name: each})
            if near.reset_max >= near.reset_timeout:
                yield near
