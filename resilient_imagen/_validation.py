"""Messages for pydantic's validation errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_imagen.redaction import redact

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["explain"]

_LONGEST: Final = 20
"""Longest value that is shown, in characters: enough to see a typing error, too few for a key."""

_LIST: Final = "must be a list"
_OBJECT: Final = "must be an object"
_MESSAGES: Final = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dataclass_type": _OBJECT,
    "dict_type": _OBJECT,
    "enum": "must be {expected}",
    "extra_forbidden": "is not known",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "frozen_set_type": _LIST,
    "greater_than": "must be greater than {gt:.15g}",
    "greater_than_equal": "must be at least {ge:.15g}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_type": "must be a whole number",
    "iterable_type": _LIST,
    "json_invalid": "is not valid JSON: {error}",
    "less_than": "must be less than {lt:.15g}",
    "less_than_equal": "must be at most {le:.15g}",
    "list_type": _LIST,
    "literal_error": "must be {expected}",
    "mapping_type": _OBJECT,
    "missing": "is missing",
    "missing_argument": "is missing",
    "missing_keyword_only_argument": "is missing",
    "model_type": _OBJECT,
    "path_type": "must be the path of a file",
    "set_type": _LIST,
    "string_type": "must be a string",
    "string_unicode": "must be a string of valid characters",
    "tuple_type": _LIST,
    "unexpected_keyword_argument": "is not known",
    "unexpected_positional_argument": "is not known",
    "value_error": "{error}",
}
"""Messages by pydantic's error type, with pydantic's placeholders."""


def explain(problem: ErrorDetails, *, secret: bool = False) -> str:
    """Return which values are allowed, and the given value if it is short and not a secret.

    Args:
        problem: One of a ValidationError's ``errors()``.
        secret: Never show the value.
    """
    pattern = _MESSAGES.get(problem["type"], "is not allowed ({type})")
    context = {"type": problem["type"].replace("_", " "), **problem.get("ctx", {})}
    if "expected" in context:
        context["expected"] = context["expected"].replace("'", "")
    text = pattern.format(**context)
    shown = None if secret or not text.startswith("must ") else _shown(problem.get("input"))
    return text if shown is None else f"{text}, not {shown}"


def _shown(value: object) -> str | None:
    """Return the value or its type; None for a str that may hold a key, a password or a prompt."""
    if isinstance(value, str):
        fine = len(value) <= _LONGEST and "@" not in value and redact(value) == value
        return repr(value) if fine else None
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int) and abs(value) < 10**_LONGEST:
        return str(value)
    return type(value).__name__
