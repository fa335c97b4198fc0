"""Environment variables: which are ours, and what to say when one holds what is not allowed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pydantic import AliasChoices
from pydantic_settings import BaseSettings, EnvSettingsSource

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["Environment", "explain"]


class Environment(EnvSettingsSource):
    """The variables named on the fields; one that is blank counts as not set.

    A field's own name is a keyword's, and no variable's: DEADLINE or REDIS_URL belong to others.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self.config = {**self.config, "populate_by_name": False}
        stripped = ((name, (value or "").strip()) for name, value in self.env_vars.items())
        self.env_vars = {name: value for name, value in stripped if value}


def explain(error: ValidationError, settings_cls: type[BaseSettings]) -> str:
    """Name each variable, what is wrong and what is allowed; never the value given."""
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        location = str(problem["loc"][0]) if problem["loc"] else ""
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            what = "no such setting"
        if problem["type"] in {"bool_parsing", "bool_type"}:
            what = "must be true or false"
        lines.append(f"{_variable_name(location, settings_cls)}: {what}" if location else what)
    return "; ".join(dict.fromkeys(lines))


def _variable_name(location: str, settings_cls: type[BaseSettings]) -> str:
    """The environment variable that sets the field (errors name the field or its first alias)."""
    for field, info in settings_cls.model_fields.items():
        if not isinstance(info.validation_alias, AliasChoices):
            continue
        names = [str(name) for name in info.validation_alias.choices]
        if location in {field, *names}:
            return next((name for name in names if os.environ.get(name, "").strip()), names[0])
    return location
