"""Overrides: the settings that may change at runtime, checked by the rules of ``Settings``.

Thresholds of breakers, pace, concurrency, time limits, hedging and the order of routes may change;
keys and addresses never do.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen._provider_settings import BUILT_IN, ProviderSettings, limit_variables
from resilient_imagen._settings_source import field_variables
from resilient_imagen._validation import check_field, checked
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from resilient_imagen.settings import RouteName

__all__ = ["FIELDS", "check_value", "fitted", "overridden", "variables_for"]

FIELDS: Final = (
    "routes", "ipm", "openai_ipm", "burst", "max_concurrent", "per_call_timeout", "openai_timeout",
    "breaker_fail_max", "breaker_failure_rate", "breaker_window", "breaker_min_calls",
    "breaker_slow_call", "breaker_reset_timeout", "breaker_reset_factor", "breaker_reset_max",
    "breaker_half_open_calls", "hedge_probe_after", "hedge_after", "hedge_budget",
)  # fmt: skip
"""Fields of ``Settings`` that may change at runtime."""
_LIMITS: Final = ("ipm", "max_concurrent", "timeout")
"""Fields of ``ProviderSettings`` that may."""


def variables_for(providers: Iterable[str]) -> tuple[str, ...]:
    """Return the variables that may change at runtime, if these providers are in use."""
    limits = (limit_variables(name)[field] for name in providers for field in _LIMITS)
    return tuple(dict.fromkeys((*_FIELD_OF, *limits)))


def check_value(variable: str, value: str, providers: Iterable[str] = ()) -> None:
    """Check a value alone, by the rules of its variable.

    Args:
        variable: The variable.
        value: What an environment would hold.
        providers: Names of declared providers, whose limits may change, too.

    Raises:
        ConfigurationError: The variable cannot change at runtime, or the value is not allowed.
    """
    _parsed(variable, value, {*BUILT_IN, *providers})


def overridden(settings: Settings, values: Mapping[str, str]) -> Settings:
    """Return the settings with other values of some variables.

    Raises:
        ConfigurationError: As ``check_value``; or the values contradict each other or the routes.
    """
    if not values:
        return settings
    changes: dict[str, Any] = {}
    providers = dict(settings.providers)
    for variable, value in values.items():
        provider, field, parsed = _parsed(variable, value, {*BUILT_IN, *settings.providers})
        if provider is None:
            changes[field] = parsed
        else:
            own = providers.get(provider) or ProviderSettings.model_validate({"name": provider})
            providers[provider] = own.model_copy(update={field: parsed})
    if "routes" in changes:
        _check_routes(settings, changes["routes"])
    changed: Any = settings.model_copy(update={**changes, "providers": providers})
    try:
        changed._consistent()  # noqa: SLF001 - the same rules as at start
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    found: Settings = changed
    return found


def fitted(settings: Settings, values: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """Return the settings with the values that are valid together, and the cause of each omission.

    Args:
        settings: The settings without the values.
        values: By variable, in the order of precedence.
    """
    with contextlib.suppress(ConfigurationError):
        return overridden(settings, values), {}
    found, fitting, left_out = settings, dict[str, str](), dict[str, str]()
    while True:
        before = set(fitting)
        for variable, value in values.items():
            if variable in fitting:
                continue
            try:
                found = overridden(settings, {**fitting, variable: value})
            except ConfigurationError as error:
                left_out[variable] = str(error)
            else:
                fitting[variable] = value
                left_out.pop(variable, None)
        if fitting.keys() == before:
            return found, left_out  # a value that was left out may be valid now


def _parsed(variable: str, value: str, providers: Iterable[str]) -> tuple[str | None, str, Any]:
    """Return the provider whose limit it is, if any, the field and the value."""
    provider, field = None, _FIELD_OF.get(variable)
    info = None if field is None else Settings.model_fields[field]
    for name in () if field is not None else providers:
        for limit in _LIMITS:
            if limit_variables(name)[limit] == variable:
                provider, field, info = name, limit, ProviderSettings.model_fields[limit]
    if field is None or info is None:
        raise ConfigurationError(
            f"{variable} cannot change at runtime; these can: {', '.join(_FIELD_OF)}, and "
            "IMAGE_GEN_<NAME>_IPM, _MAX_CONCURRENT and _TIMEOUT of a built-in or declared provider"
        )
    return provider, field, checked(variable, partial(check_field, info), value)


def _check_routes(settings: Settings, routes: tuple[RouteName, ...]) -> None:
    """Allow the configured routes in another order or grouping; some may be left out."""
    known = {account.key for account in settings.accounts}
    for step in routes:
        for account in step.accounts:
            if account.key not in known:
                raise ConfigurationError(
                    "IMAGE_GEN_ROUTES may only name configured routes at runtime: "
                    + ", ".join(sorted(known))
                )


_FIELD_OF: Final = {field_variables(Settings)[field][0]: field for field in FIELDS}
