"""Tunable settings: the values to try, and their environment variables."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from resilient_imagen._provider_settings import ProviderSettings, limit_variables
from resilient_imagen.effective_settings import value_text, variable_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from resilient_imagen.settings import Settings

__all__ = ["GRID", "TunableSettings", "neighbours", "sample"]

_FIELDS: Final[Mapping[str, str]] = {
    "fail_max": "breaker_fail_max",
    "failure_rate": "breaker_failure_rate",
    "window": "breaker_window",
    "slow_call": "breaker_slow_call",
    "reset_timeout": "breaker_reset_timeout",
    "reset_factor": "breaker_reset_factor",
    "reset_max": "breaker_reset_max",
    "retries": "max_retries",
    "per_call_timeout": "per_call_timeout",
    "deadline": "deadline",
    "hedge_probe_after": "hedge_probe_after",
    "hedge_after": "hedge_after",
    "on_timeout": "on_timeout",
    "max_wait": "max_wait",
    "mode": "breaker_mode",
}
"""The field of Settings of each tunable setting."""
_OF_FALLBACK: Final = {"fallback_fail_max": "fail_max", "fallback_reset_timeout": "reset_timeout"}
"""Settings of the last provider's breakers; None is as for all."""


@dataclass(frozen=True, slots=True)
class TunableSettings:
    """One setting to try."""

    fail_max: int
    failure_rate: float
    window: float
    slow_call: float | None
    reset_timeout: float
    reset_factor: float
    reset_max: float
    retries: int
    per_call_timeout: float
    deadline: float | None
    hedge_probe_after: float | None
    hedge_after: float | Literal["p95"] | None
    on_timeout: str
    max_wait: float | None
    fallback_fail_max: int | None = None
    fallback_reset_timeout: float | None = None
    mode: str = "on"
    """The breaker's mode; all trials have it on, the present settings may differ."""
    fallback: str = ""
    """The last provider; empty if there is one provider only."""

    @classmethod
    def of(cls, settings: Settings) -> TunableSettings:
        """Return the tunable part of settings."""
        values: dict[str, Any] = {n: getattr(settings, field) for n, field in _FIELDS.items()}
        fallback = _fallback_of(settings)
        own = settings.providers.get(fallback)
        breaker = (own and own.breaker) or {}
        values |= {name: breaker.get(field) for name, field in _OF_FALLBACK.items()}
        return cls(**values, fallback=fallback)

    @property
    def is_valid(self) -> bool:
        """Whether Settings accepts them."""
        own = self.fallback_reset_timeout
        return self.reset_max >= max(self.reset_timeout, self.reset_timeout if own is None else own)

    def applied(self, settings: Settings) -> Settings:
        """Return ``settings`` with these values, and no provider forced open."""
        turned = {field: getattr(self, name) for name, field in _FIELDS.items()}
        changed = settings.model_copy(update={**turned, "force_open": ()})
        if not self.fallback:
            return changed
        known = settings.providers.get(self.fallback)
        if known is None:
            known = ProviderSettings.model_validate({"name": self.fallback, "kind": self.fallback})
        given = {field: getattr(self, name) for name, field in _OF_FALLBACK.items()}
        breaker = {**(known.breaker or {}), **given}
        breaker = {name: value for name, value in breaker.items() if value is not None}
        own = known.model_copy(update={"breaker": breaker or None})
        return changed.model_copy(update={"providers": {**settings.providers, self.fallback: own}})

    def variables(self) -> dict[str, str]:
        """Return the values by variable, as an environment has them."""
        found = {variable_of(field): value_text(getattr(self, n)) for n, field in _FIELDS.items()}
        if self.fallback:
            own = {field: getattr(self, name) for name, field in _OF_FALLBACK.items()}
            given = {name: value for name, value in own.items() if value is not None}
            found[limit_variables(self.fallback)["breaker"]] = value_text(given)
        return found

    def env_lines(self, since: TunableSettings | None = None) -> list[str]:
        """Return lines ``VARIABLE=value``; with ``since``, only the values that differ from it."""
        before = {} if since is None else since.variables()
        return [
            f"{name}={value}"
            for name, value in self.variables().items()
            if before.get(name, "" if since is not None else None) != value
        ]

    def shadow_line(self, since: TunableSettings) -> str | None:
        """Return the line that tries its breaker settings beside live ones, without effect.

        Args:
            since: The live settings.

        Returns:
            ``IMAGE_GEN_SHADOW=...`` with the values that differ, or None if the breakers are equal.
        """
        prefix = "breaker_"
        differing = [
            f"{field.removeprefix(prefix)}={value_text(getattr(self, name))}"
            for name, field in _FIELDS.items()
            if name != "mode"
            and field.startswith(prefix)
            and getattr(since, name) != getattr(self, name)
        ]
        return f"IMAGE_GEN_SHADOW={','.join(differing)}" if differing else None

    def differences(self, since: TunableSettings) -> list[str]:
        """Return the names of the fields that differ."""
        return [
            field.name
            for field in fields(self)
            if getattr(self, field.name) != getattr(since, field.name)
        ]

    def changed_from(self, since: TunableSettings) -> int:
        """Return the number of values that differ."""
        return len(self.differences(since))


def _fallback_of(settings: Settings) -> str:
    first, last = settings.accounts[0].provider, settings.accounts[-1].provider
    return "" if first == last or not _is_declared(last, settings) else last


def _is_declared(provider: str, settings: Settings) -> bool:
    """Return whether variables can set limits of the provider."""
    return settings.provider(provider) is not None


GRID: Final[Mapping[str, Sequence[Any]]] = {
    "fail_max": (1, 2, 3, 5, 8),
    "failure_rate": (0.3, 0.5, 0.7),
    "window": (120.0, 300.0, 600.0),
    "slow_call": (30.0, 45.0, None),
    "reset_timeout": (15.0, 30.0, 60.0, 120.0),
    "reset_factor": (0.0, 2.0, 5.0, 10.0),
    "reset_max": (60.0, 120.0, 300.0, 600.0),
    "retries": (0, 1, 2, 3),
    "per_call_timeout": (30.0, 45.0, 60.0, 90.0, 120.0),
    "deadline": (120.0, 180.0, 300.0, None),
    "hedge_probe_after": (1.0, 3.0, 10.0, None),
    "hedge_after": (30.0, "p95", None),
    "on_timeout": ("keep", "abandon"),
    "max_wait": (10.0, 30.0, None),
    "fallback_fail_max": (3, 5, 8, None),
    "fallback_reset_timeout": (15.0, 60.0, None),
}
"""The values to try, in order. None is never, and last; for the fallback, it is as for all."""

_MOST_CHANGES: Final = 5
"""Maximum number of settings that a random trial changes."""


def sample(count: int, seed: int = 0, base: TunableSettings | None = None) -> list[TunableSettings]:
    """Return ``count`` different settings, each with some values of ``base`` changed at random.

    Most settings have little effect, so a trial that changes all at once says little about any.

    Args:
        count: Number of settings.
        seed: Seed of the choice.
        base: The settings to change; None means the middle of the grid.
    """
    chance = random.Random(seed)
    usual = _middle() if base is None else replace(base, mode="on")
    names = [name for name in GRID if usual.fallback or name not in _OF_FALLBACK]
    found: dict[TunableSettings, None] = {}
    while len(found) < count:
        chosen = chance.sample(names, chance.randint(1, _MOST_CHANGES))
        changed = replace(usual, **{name: chance.choice(GRID[name]) for name in chosen})
        if changed.is_valid:
            found[changed] = None
    return list(found)


def _middle() -> TunableSettings:
    values = {name: values[len(values) // 2] for name, values in GRID.items()}
    return TunableSettings(**{**values, "fallback_fail_max": None, "fallback_reset_timeout": None})


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
        if name in _OF_FALLBACK and not knobs.fallback:
            continue
        for each in _next_to(getattr(knobs, name), values):
            near = replace(knobs, mode="on", **{name: each})
            if near.is_valid:
                yield near
