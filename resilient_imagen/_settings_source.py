"""Environment variables: the settings source, its error messages and its warnings."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import AliasChoices, SecretStr
from pydantic_settings import BaseSettings, EnvSettingsSource

from resilient_imagen._provider_settings import (
    BUILT_IN,
    DECLARATION,
    PREFIX,
    ignored_variables,
    provider_variables,
    read_providers,
    variables_of_providers,
)
from resilient_imagen._validation import explain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

__all__ = [
    "EnvironmentSource",
    "describe_errors",
    "environment_warnings",
    "field_variables",
    "is_unknown_variable",
    "unknown_variable_warning",
]

_PROVIDERS_ALIAS: Final = f"{DECLARATION}<NAME>"
_NOT_IN_NAMES: Final = re.compile(r"\W", re.ASCII)
_MAX_NAME: Final = 60
"""Characters of an unknown variable's name that a warning shows."""


class EnvironmentSource(EnvSettingsSource):
    """A settings source that reads the variables of the fields.

    A blank variable is not set, unless the field has a default and may be None: then it is None.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        # A field that names its variables has no default variable with our prefix.
        self.config = {**self.config, "populate_by_name": False}
        keep = {
            name.lower()
            for field, names in field_variables(settings_cls).items()
            for name in names
            if settings_cls.model_fields[field].default is not None
            and type(None) in get_args(settings_cls.model_fields[field].annotation)
        }
        stripped = ((name, (value or "").strip()) for name, value in self.env_vars.items())
        self.env_vars = {name: value for name, value in stripped if value or name in keep}

    def __call__(self) -> dict[str, Any]:
        """Return the settings of the environment; a keyword argument replaces a whole setting.

        The variables of providers contain their names, so they cannot be aliases of a field.
        """
        found = super().__call__()
        # Values, also those of keyword arguments, are collected by their first alias.
        given = read_providers(self.env_vars)
        if given and _PROVIDERS_ALIAS not in self.current_state:
            found[_PROVIDERS_ALIAS] = given
        return found


@cache
def field_variables(settings_cls: type[BaseSettings]) -> Mapping[str, tuple[str, ...]]:
    """Return the variables of each field; the first one that is set counts."""
    return {
        field: tuple(map(str, info.validation_alias.choices))
        if isinstance(info.validation_alias, AliasChoices)
        else (f"{PREFIX}{field.upper()}",)
        for field, info in settings_cls.model_fields.items()
    }


def describe_errors(error: ValidationError, settings_cls: type[BaseSettings]) -> str:
    """Return an error message: each variable, its allowed values, and the value if not secret."""
    lines = []
    for problem in error.errors(include_url=False):
        info, variables = _location(problem["loc"], settings_cls)
        if problem["type"] == "extra_forbidden":
            what = "no such setting"
            meant = variables[0].removeprefix(PREFIX).lower()
            if nearest := get_close_matches(meant, settings_cls.model_fields, n=1):
                what = f"{what}; did you mean {nearest[0]}?"
        else:
            secret = info is not None and SecretStr in get_args(info.annotation)
            what = explain(problem, secret=secret)
        name = next((each for each in variables if os.environ.get(each, "").strip()), variables[0])
        lines.append(f"{name}: {what}" if name else what)
    return "; ".join(dict.fromkeys(lines))


def _location(
    path: tuple[int | str, ...], settings_cls: type[BaseSettings]
) -> tuple[FieldInfo | None, tuple[str, ...]]:
    """Return the field of an error and its variables, or None and the name of an unknown field.

    Args:
        path: Begins with the field's name or an alias.
        settings_cls: The class of the settings.
    """
    first, *rest = map(str, path or ("",))
    if rest and first in {"providers", _PROVIDERS_ALIAS}:
        name, field, *_ = (*rest, "kind")
        variables = {} if name in BUILT_IN and field == "kind" else provider_variables(name, "")
        return None, variables.get(field, (f"{DECLARATION}{name.upper()}",))
    for field, names in field_variables(settings_cls).items():
        if first in {field, *names}:
            return settings_cls.model_fields[field], names
    return None, (first,)


def environment_warnings(settings_cls: type[BaseSettings], *, declared: bool) -> tuple[str, ...]:
    """Return a warning for each variable that is set and has no effect.

    These are unknown variables with our prefix, and variables of a declared provider that its kind
    does not have. A blank variable counts as not set, and case does not matter, as for known ones.

    Args:
        settings_cls: The class of the settings.
        declared: Whether the providers that variables declare are used.
    """
    unknown = sorted(
        name
        for name, value in os.environ.items()
        if value.strip() and is_unknown_variable(name, settings_cls)
    )
    ignored = ignored_variables(os.environ) if declared else ()
    return (*(unknown_variable_warning(name, settings_cls) for name in unknown), *ignored)


def is_unknown_variable(name: str, settings_cls: type[BaseSettings]) -> bool:
    """Return whether a name has our prefix and is no setting; case does not matter."""
    upper = name.upper()
    known = (each.upper() for each in _known(settings_cls))
    return upper.startswith(PREFIX) and upper not in known


def unknown_variable_warning(
    unknown: str, settings_cls: type[BaseSettings], *, ignored: bool = True
) -> str:
    """Return a warning with the unknown variable's name, not its value, and the nearest known name.

    Names are compared without their common prefix, which would make all of them similar.

    Args:
        unknown: The variable's name.
        settings_cls: The class of the settings.
        ignored: Add that the variable is ignored; False for the text of an error.
    """
    by_rest = {name.removeprefix(PREFIX): name for name in _known(settings_cls)}
    nearest = get_close_matches(unknown.upper().removeprefix(PREFIX), by_rest, n=1)
    hint = f"did you mean {by_rest[nearest[0]]}?" if nearest else "no setting has a similar name"
    shown = _NOT_IN_NAMES.sub("?", unknown)[:_MAX_NAME]
    ending = " and is ignored" if ignored else ""
    return f"{shown} is not a setting{ending}; {hint}"


def _known(settings_cls: type[BaseSettings]) -> list[str]:
    """Return all variables of all fields and of all providers."""
    of_fields = (name for names in field_variables(settings_cls).values() for name in names)
    return [*of_fields, *variables_of_providers(os.environ)]
