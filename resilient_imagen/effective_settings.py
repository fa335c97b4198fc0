"""Effective settings: the settings that decide how calls go, as variables, without secrets.

A client reports them in its telemetry, and the tuner reads them from a recording. One text has all
of them, as an environment file would: ``IMAGE_GEN_IPM=10 IMAGE_GEN_BREAKER_FAIL_MAX=3 …``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, get_args

from resilient_imagen._provider_settings import (
    BUILT_IN,
    DECLARATION,
    limit_variables,
    read_providers,
    variables_of_providers,
)
from resilient_imagen._settings_source import field_variables, unknown_variable_warning
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.settings import Settings

if TYPE_CHECKING:
    from resilient_imagen._provider_settings import ProviderSettings

__all__ = [
    "DEFAULTS",
    "as_text",
    "changed_from_defaults",
    "is_known",
    "read_text",
    "settings_from",
    "value_text",
    "variable_of",
    "variables_of",
]

DEFAULTS: Final = "defaults"
"""The text of no variables."""


_FIELDS: Final = (
    "routes", "max_concurrent", "ipm", "openai_ipm", "burst", "max_queue", "max_retries",
    "retry_base_delay", "per_call_timeout", "openai_timeout", "deadline", "breaker_mode",
    "breaker_fail_max", "breaker_failure_rate", "breaker_window", "breaker_min_calls",
    "breaker_slow_call", "breaker_reset_timeout", "breaker_reset_factor", "breaker_reset_max",
    "breaker_half_open_calls", "hedge_probe_after", "hedge_after", "hedge_budget", "on_timeout",
    "max_wait", "when_all_open", "force_open", "fallback_on", "openai_quality",
)  # fmt: skip
"""Fields that decide how calls go. Keys, addresses and what concerns images only are left out."""


def variables_of(settings: Settings) -> dict[str, str]:
    """Return the settings by variable, with values as an environment has them."""
    found = {variable_of(name): value_text(getattr(settings, name)) for name in _FIELDS}
    for name, provider in settings.providers.items():
        found.update(_variables_of_provider(name, provider))
    return found


@cache
def _defaults() -> Mapping[str, str]:
    return variables_of(settings_from({}))


def changed_from_defaults(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables whose values are not the defaults."""
    usual = _defaults()
    return {name: value for name, value in variables.items() if usual.get(name) != value}


def settings_from(variables: Mapping[str, str]) -> Settings:
    """Return the settings with these variables, and defaults for all others.

    The environment of this process has no part in them.

    Raises:
        ConfigurationError: A variable is not a setting, or its value is not allowed.
    """
    by_variable = {variable_of(name): name for name in _FIELDS}
    values: dict[str, Any] = {name: each.default for name, each in Settings.model_fields.items()}
    others = {}
    for variable, value in variables.items():
        if (field := by_variable.get(variable)) is None:
            others[variable] = value
        elif value.strip() or type(None) in _types_of(field):
            values[field] = value
    for unknown in others.keys() - set(variables_of_providers(others)):
        raise ConfigurationError(unknown_variable_warning(unknown, Settings, ignored=False))
    if providers := read_providers({name.lower(): value for name, value in others.items()}):
        values["providers"] = providers
    return Settings(**values)


def is_known(variable: str, variables: Iterable[str] = ()) -> bool:
    """Return whether a variable is one of those settings; ``variables`` may declare providers."""
    fields = {variable_of(name) for name in _FIELDS}
    return variable in fields or variable in variables_of_providers({*variables, variable})


def as_text(variables: Mapping[str, str]) -> str:
    """Return the variables as one line."""
    return " ".join(f"{name}={value}" for name, value in variables.items())


def read_text(text: str) -> dict[str, str]:
    """Return the variables in a line of ``as_text``.

    Raises:
        ValueError: A part of the line is not NAME=VALUE.
    """
    found: dict[str, str] = {}
    for part in () if text == DEFAULTS else text.split():
        name, separator, value = part.partition("=")
        if not (separator and name.isidentifier()):
            raise ValueError("settings are not NAME=VALUE, separated by spaces")
        found[name] = value
    return found


def variable_of(field: str) -> str:
    """Return the environment variable of a field of Settings."""
    return field_variables(Settings)[field][0]


def value_text(value: object) -> str:
    """Return a setting's value as an environment variable has it; an empty string for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | int):
        short = format(value, "g")
        return short if float(short) == value else repr(value)
    if isinstance(value, Mapping):
        return ",".join(f"{name}={value_text(each)}" for name, each in value.items())
    if isinstance(value, frozenset):
        return ",".join(sorted(value))
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _variables_of_provider(name: str, provider: ProviderSettings) -> dict[str, str]:
    declared = {} if name in BUILT_IN else {f"{DECLARATION}{name.upper()}": provider.kind}
    limits = {
        variable: value_text(getattr(provider, field))
        for field, variable in limit_variables(name).items()
        if getattr(provider, field) is not None
    }
    return {**declared, **limits}


def _types_of(field: str) -> tuple[Any, ...]:
    return get_args(Settings.model_fields[field].annotation)
