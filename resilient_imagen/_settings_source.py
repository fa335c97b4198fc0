"""Environment variables: which are ours, and what to say when one holds what is not allowed."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, get_args

from pydantic import AliasChoices, SecretStr
from pydantic_settings import BaseSettings, EnvSettingsSource

from resilient_imagen._validation import explain

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

__all__ = ["EnvironmentSource", "complain_of", "describe_errors", "unknown_variables"]

_PREFIX: Final = "IMAGE_GEN_"
"""Variables with it are read by this package alone."""
_NOT_IN_NAMES: Final = re.compile(r"\W", re.ASCII)
_MAX_NAME: Final = 60
"""Characters of an unknown variable's name that a warning shows."""


class EnvironmentSource(EnvSettingsSource):
    """The variables named on the fields; one that is blank counts as not set.

    A field's own name is a keyword's, and no variable's: DEADLINE or REDIS_URL belong to others.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self.config = {**self.config, "populate_by_name": False}
        stripped = ((name, (value or "").strip()) for name, value in self.env_vars.items())
        self.env_vars = {name: value for name, value in stripped if value}


def describe_errors(error: ValidationError, settings_cls: type[BaseSettings]) -> str:
    """Name each variable, what is allowed and, unless it may be a secret, the value."""
    lines = []
    for problem in error.errors(include_url=False):
        location = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            what = f"no such setting{_nearest_field(location, settings_cls)}"
        else:
            what = explain(problem, secret=_is_secret(location, settings_cls))
        lines.append(f"{_variable_name(location, settings_cls)}: {what}" if location else what)
    return "; ".join(dict.fromkeys(lines))


def _nearest_field(unknown: str, settings_cls: type[BaseSettings]) -> str:
    nearest = get_close_matches(unknown, settings_cls.model_fields, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _variable_name(location: str, settings_cls: type[BaseSettings]) -> str:
    """The environment variable that sets the field."""
    _, names = _field(location, settings_cls)
    return next((name for name in names if os.environ.get(name, "").strip()), names[0])


def _is_secret(location: str, settings_cls: type[BaseSettings]) -> bool:
    field, _ = _field(location, settings_cls)
    return field is not None and SecretStr in get_args(field.annotation)


def _field(location: str, settings_cls: type[BaseSettings]) -> tuple[FieldInfo | None, list[str]]:
    """The field, and its variables; errors name the field or its first alias."""
    for field, info in settings_cls.model_fields.items():
        if not isinstance(info.validation_alias, AliasChoices):
            continue
        names = [str(name) for name in info.validation_alias.choices]
        if location in {field, *names}:
            return info, names
    return None, [location]


def unknown_variables(settings_cls: type[BaseSettings]) -> tuple[str, ...]:
    """Return the names in the environment that look like a setting and are none, sorted.

    A blank variable counts as not set, and case does not matter, as for the known ones.
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


def complain_of(unknown: str, settings_cls: type[BaseSettings]) -> str:
    """Return a warning about an unknown variable: its name, never its value, and the nearest one.

    Names are compared without their prefix, which would make any two of them alike.
    """
    by_rest = {name.removeprefix(_PREFIX): name for name in _known(settings_cls)}
    nearest = get_close_matches(unknown.upper().removeprefix(_PREFIX), by_rest, n=1)
    hint = f"did you mean {by_rest[nearest[0]]}?" if nearest else "no setting has a similar name"
    shown = _NOT_IN_NAMES.sub("?", unknown)[:_MAX_NAME]
    return f"{shown} is not a setting and is ignored; {hint}"


def _known(settings_cls: type[BaseSettings]) -> list[str]:
    """Return every variable that a field names."""
    return [
        str(name)
        for info in settings_cls.model_fields.values()
        if isinstance(info.validation_alias, AliasChoices)
        for name in info.validation_alias.choices
    ]
