"""Validation: checks of values, and messages for pydantic's errors.

A check returns the value in the form that is used. If the value is not allowed, it raises
ValueError; the text follows a variable's or parameter's name, and never shows a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import ConfigDict, SecretStr, TypeAdapter, ValidationError

from resilient_imagen.errors import ConfigurationError
from resilient_imagen.redaction import redact

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

__all__ = [
    "HTTP",
    "PROMPT_HINTS",
    "blank_to_none",
    "check_address",
    "check_api_key",
    "check_base_url",
    "check_control_secret",
    "check_field",
    "check_location",
    "check_project",
    "check_prompt_hints",
    "check_types",
    "checked",
    "explain",
    "shown_address",
    "split_commas",
    "split_url",
    "strip_secret",
]

HTTP: Final = ("https", "http")
PROMPT_HINTS: Final = ("quality", "orientation")
_SHORTEST_SECRET: Final = 16
"""Characters of a secret for signatures."""
_OFF: Final = frozenset({"", "off", "none", "no", "-"})
_RULES: Final = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
_PROJECT: Final = re.compile(r"[a-z0-9][a-z0-9.:-]{0,127}")
_LOCATION: Final = re.compile("[a-z][a-z0-9-]{0,62}")

# -- checks ---------------------------------------------------------------------------------------


def checked(what: str, check: Callable[[Any], Any], value: Any) -> Any:
    """Return the value as a check returns it.

    Raises:
        ConfigurationError: The value is not allowed; the text begins with ``what``.
    """
    try:
        return check(value)
    except ValueError as error:
        text = str(error)
    raise ConfigurationError(f"{what} {text}")  # outside, so that no frame of the check is kept


def blank_to_none(value: Any) -> Any:
    """Convert a blank str, ``off``, ``none`` and similar words to None, which means no limit."""
    return None if isinstance(value, str) and value.strip().lower() in _OFF else value


def split_commas(value: object) -> tuple[str, ...]:
    """Return the parts between commas without blank ones, or the strings of a list.

    Raises:
        ValueError: The value is neither a string nor a list of strings.
    """
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    parts = tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("must be a string with commas or a list of strings")
    return parts


def split_url(url: str, schemes: Collection[str]) -> SplitResult:
    """Split a URL, which must have one of the schemes, a host, and a valid port if any.

    Raises:
        ValueError: The URL is malformed. The text does not show it, as it may contain a password.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in schemes or not parts.hostname or parts.port == 0:
        raise ValueError("is not a URL")
    return parts


def check_address(url: str) -> str:
    """Strip white space from an http or https address, which may contain a password.

    Raises:
        ValueError: The value is not such an address.
    """
    try:
        split_url(url, HTTP)
    except ValueError:
        raise ValueError(
            "must be an address such as https://host or https://host:port/path"
        ) from None
    return url.strip()


def shown_address(url: str) -> str:
    """Return an http or https address as it may be shown: without user, password and query.

    Raises:
        ValueError: The value is not such an address, or it is unclear where its password ends.
    """
    parts = urlsplit(check_address(url))
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        raise ValueError("must not contain an @ after the host; write / in a password as %2F")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def check_base_url(value: Any) -> Any:
    """Check the address of an API, which may be shown; a blank one means None.

    Raises:
        ValueError: The value is not an address, or contains a user name or a password.
    """
    value = blank_to_none(value)
    if isinstance(value, str) and "@" in urlsplit(value := check_address(value)).netloc:
        raise ValueError("must not contain a user name or a password")
    return value


def strip_secret(value: object) -> object:
    """Strip white space such as a copied line break from a secret; a blank one means None."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return value.strip() or None if isinstance(value, str) else value


def check_control_secret(value: object) -> object:
    """Strip a secret for signatures; a blank one means None.

    Raises:
        ValueError: The secret is so short that it could be guessed.
    """
    secret = strip_secret(value)
    if isinstance(secret, str) and len(secret) < _SHORTEST_SECRET:
        raise ValueError(f"must have at least {_SHORTEST_SECRET} characters")
    return secret


def check_api_key(value: object) -> object:
    """Strip a key; a blank one means None.

    Raises:
        ValueError: The key cannot be sent as a header.
    """
    key = strip_secret(value)
    if isinstance(key, str) and not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(
            "contains characters that no key has (a space, a line break or a letter beyond ASCII); "
            "copy it again"
        )
    return key


def check_project(value: object) -> object:
    """Check a project of Google Cloud.

    Raises:
        ValueError: The value is neither an ID nor a number.
    """
    project = value.get_secret_value() if isinstance(value, SecretStr) else value
    if project is not None and not (isinstance(project, str) and _PROJECT.fullmatch(project)):
        raise ValueError("must be a project's ID or number: small letters, digits and hyphens")
    return value


def check_location(value: object) -> object:
    """Check a location of Vertex AI.

    Raises:
        ValueError: The value cannot be a location.
    """
    if value is not None and not (isinstance(value, str) and _LOCATION.fullmatch(value)):
        raise ValueError("must be global, us, eu or a region such as europe-west4")
    return value


def check_prompt_hints(value: Any) -> tuple[str, ...]:
    """Return the prompt hints, each once; a blank value means no hint.

    Raises:
        ValueError: A hint is unknown.
    """
    value = blank_to_none(value.lower() if isinstance(value, str) else value)
    hints = tuple(dict.fromkeys(() if value is None else split_commas(value)))
    if not set(hints).issubset(PROMPT_HINTS):
        raise ValueError("must be quality, orientation, both of them with a comma, or none")
    return hints


def check_types(
    holder: object, types: Mapping[str, type], optional: frozenset[str] = frozenset()
) -> None:
    """Check the types of an object's fields.

    Args:
        holder: The object.
        types: The type of each field.
        optional: The fields that may be None, too.

    Raises:
        TypeError: A field has another type.
    """
    for name, kind in types.items():
        value = getattr(holder, name)
        # Compare the exact type first: it is the common case. A bool is an int, but not a count.
        if type(value) is kind or (value is None and name in optional):
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            allowed = f"{kind.__name__} or None" if name in optional else kind.__name__
            raise TypeError(
                f"{type(holder).__name__}.{name} must be {allowed}, not {type(value).__name__}"
            )


# -- messages -------------------------------------------------------------------------------------

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


def check_field(field: FieldInfo, value: object) -> Any:
    """Return a value as a field of settings holds it.

    Raises:
        ValueError: The value is not allowed; the text states what is, and the value.
    """
    allowed: Any = Annotated[field.annotation, *field.metadata]
    rules: TypeAdapter[Any] = TypeAdapter(allowed, config=_RULES)
    try:
        return rules.validate_python(value.strip() if isinstance(value, str) else value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    raise ValueError(explain(problem))


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
