"""Environment variables: the settings source, its error messages and its warnings."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import AliasChoices, SecretStr
from pydantic_settings import BaseSettings, EnvSettingsSource

from resilient_imagen._provider_settings import (
    BUILT_IN,
    DECLARATION,
    declared_names,
    ignored_variables,
    limit_variables,
    provider_variables,
    read_providers,
)
from resilient_imagen._validation import explain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

__all__ = [
    "EnvironmentSource",
    "complain_of",
    "describe_errors",
    "field_variables",
    "ignored_provider_variables",
    "unknown_variables",
]

_PREFIX: Final = "IMAGE_GEN_"
"""Prefix of the variables that only this package reads."""
_PROVIDERS_ALIAS: Final = f"{DECLARATION}<NAME>"
_NOT_IN_NAMES: Final = re.compile(r"\W", re.ASCII)
_MAX_NAME: Final = 60
"""Characters of an unknown variable's name that a warning shows."""


class EnvironmentSource(EnvSettingsSource):
    """A settings source that reads the variables named by the fields.

    A blank variable is not set, unless the field has a default and may be None: then it is None.

    A field's own name is a keyword argument, not a variable: DEADLINE or REDIS_URL may belong to
    other software.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self.config = {**self.config, "populate_by_name": False}
        stripped = ((name, (value or "").strip()) for name, value in self.env_vars.items())
        keep = _blank_means_none(settings_cls)
        self.env_vars = {name: value for name, value in stripped if value or name in keep}

    def __call__(self) -> dict[str, Any]:
        """Return the settings that the environment holds; a keyword argument replaces all of one.

        Providers have as many variables as there are names, so they have no alias each.
        """
        found = super().__call__()
        # Values, also those of keyword arguments, are collected by their first alias.
        given = read_providers(self.env_vars)
        if given and _PROVIDERS_ALIAS not in self.current_state:
            found[_PROVIDERS_ALIAS] = given
        return found


def _blank_means_none(settings_cls: type[BaseSettings]) -> frozenset[str]:
    """Return the variables, in lower case, of fields that are None only if they are set to it."""
    return frozenset(
        name.lower()
        for info in settings_cls.model_fields.values()
        if info.default is not None and type(None) in get_args(info.annotation)
        if isinstance(info.validation_alias, AliasChoices)
        for name in map(str, info.validation_alias.choices)
    )


def describe_errors(error: ValidationError, settings_cls: type[BaseSettings]) -> str:
    """Return an error message: each variable, its allowed values, and the value if not secret."""
    lines = []
    for problem in error.errors(include_url=False):
        location = _location(problem["loc"])
        if problem["type"] == "extra_forbidden":
            what = f"no such setting{_nearest_field(location, settings_cls)}"
        else:
            what = explain(problem, secret=_is_secret(location, settings_cls))
        lines.append(f"{_variable_name(location, settings_cls)}: {what}" if location else what)
    return "; ".join(dict.fromkeys(lines))


def _location(path: tuple[int | str, ...]) -> str:
    """Return the field, its first alias, or the variable of a provider's field."""
    first, *rest = map(str, path or ("",))
    if not rest or first not in {"providers", _PROVIDERS_ALIAS}:
        return first
    name, field, *_ = (*rest, "kind")
    variables = {} if name in BUILT_IN and field == "kind" else provider_variables(name, "")
    return variables.get(field, (f"{DECLARATION}{name.upper()}",))[0]


def _nearest_field(unknown: str, settings_cls: type[BaseSettings]) -> str:
    nearest = get_close_matches(unknown, settings_cls.model_fields, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _variable_name(location: str, settings_cls: type[BaseSettings]) -> str:
    """Return the environment variable that sets the field."""
    _, names = _field(location, settings_cls)
    return next((name for name in names if os.environ.get(name, "").strip()), names[0])


def _is_secret(location: str, settings_cls: type[BaseSettings]) -> bool:
    field, _ = _field(location, settings_cls)
    return field is not None and SecretStr in get_args(field.annotation)


def _field(location: str, settings_cls: type[BaseSettings]) -> tuple[FieldInfo | None, list[str]]:
    """Return the field and its variables; ``location`` is the field's name or its first alias."""
    for field, info in settings_cls.model_fields.items():
        if not isinstance(info.validation_alias, AliasChoices):
            continue
        names = [str(name) for name in info.validation_alias.choices]
        if location in {field, *names}:
            return info, names
    return None, [location]


def unknown_variables(settings_cls: type[BaseSettings]) -> tuple[str, ...]:
    """Return the sorted names of environment variables with our prefix that are not settings.

    A blank variable counts as not set, and case does not matter, as for known variables.
    """
    known = {name.upper() for name in _known(settings_cls)}
    return tuple(
        sorted(
            name
            for name in os.environ
            if name.upper().startswith(_PREFIX)
            and name.upper() not in known
            and os.environ.get(name, "").strip()
        )
    )


def ignored_provider_variables() -> tuple[str, ...]:
    """Return a warning for each variable of a declared provider that its kind does not have."""
    return tuple(ignored_variables(os.environ))


def complain_of(unknown: str, settings_cls: type[BaseSettings]) -> str:
    """Return a warning with the unknown variable's name, not its value, and the nearest known name.

    Names are compared without their common prefix, which would make all of them similar.
    """
    by_rest = {name.removeprefix(_PREFIX): name for name in _known(settings_cls)}
    nearest = get_close_matches(unknown.upper().removeprefix(_PREFIX), by_rest, n=1)
    hint = f"did you mean {by_rest[nearest[0]]}?" if nearest else "no setting has a similar name"
    shown = _NOT_IN_NAMES.sub("?", unknown)[:_MAX_NAME]
    return f"{shown} is not a setting and is ignored; {hint}"


def _known(settings_cls: type[BaseSettings]) -> list[str]:
    """Return all variables of all fields and of all providers."""
    declared = list(declared_names(os.environ))
    return [
        *field_variables(settings_cls),
        *(f"{DECLARATION}{name.upper()}" for name in declared),
        *(
            variable
            for name in (*BUILT_IN, *declared)
            for variable in limit_variables(name).values()
        ),
    ]


def field_variables(settings_cls: type[BaseSettings]) -> Iterator[str]:
    """Yield all variables of all fields."""
    for info in settings_cls.model_fields.values():
        if isinstance(info.validation_alias, AliasChoices):
            yield from map(str, info.validation_alias.choices)
