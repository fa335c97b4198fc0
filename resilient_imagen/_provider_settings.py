"""Settings of each provider: its kind, account, address, limits and variables.

Google and OpenAI are built in. Any other name is declared by IMAGE_GEN_PROVIDER_<NAME>=kind, and is
then used in IMAGE_GEN_ROUTES like the built-in names. Names are in upper case in variables, and in
lower case everywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - pydantic evaluates the annotations
from itertools import chain
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NamedTuple,
    Self,
    TypeAlias,
    TypedDict,
)

from pydantic import BaseModel, ConfigDict, SecretStr, model_validator

from resilient_imagen._settings_types import (
    LowercaseStr,
    OptionalPositiveFloat,
    OptionalPositiveInt,
    OptionalSeconds,
    OptionalStr,
    Secret,
)
from resilient_imagen._validation import (
    check_api_key,
    check_base_url,
    check_location,
    check_project,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "BUILT_IN",
    "DECLARATION",
    "OWN_FIELDS",
    "PREFIX",
    "ProviderArguments",
    "ProviderSettings",
    "check_names",
    "declared_names",
    "ignored_variables",
    "limit_variables",
    "provider_variables",
    "read_providers",
    "variables_of_providers",
    "vendor_of",
]

PREFIX: Final = "IMAGE_GEN_"
"""Prefix of the variables that only this package reads."""
DECLARATION: Final = f"{PREFIX}PROVIDER_"
"""Prefix of the variables that declare a provider; the rest is its name."""
_NAME: Final = re.compile("[a-z][a-z0-9_]*")
_MAX_NAME: Final = 40
_LIMITS: Final = ("ipm", "max_concurrent", "timeout", "breaker")


ProviderKind: TypeAlias = Literal["google", "vertex", "openai", "azure"]


class ProviderArguments(TypedDict, total=False):
    """Settings of one provider as keyword arguments; see ``ProviderSettings``."""

    kind: ProviderKind
    api_key: str | SecretStr | None
    base_url: str | None
    project: str | SecretStr | None
    location: str | None
    credentials: str | None
    ipm: float | None
    max_concurrent: int | None
    timeout: float | None
    breaker: str | Mapping[str, object] | None


class _Kind(NamedTuple):
    """An API that a provider can use."""

    vendor: str
    """The vendor whose rows of the model table hold."""
    account: tuple[str, ...] = ("api_key", "base_url")
    """The fields of ``ProviderSettings`` that select account and address."""


_KINDS: Final[Mapping[str, _Kind]] = {
    "google": _Kind("google"),
    "vertex": _Kind("google", ("api_key", "base_url", "project", "location", "credentials")),
    "openai": _Kind("openai"),
    "azure": _Kind("openai"),
}

BUILT_IN: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "google": {
        "api_key": ("GOOGLE_GENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
        "base_url": ("GOOGLE_GEMINI_BASE_URL",),
    },
    "vertex": {
        "api_key": ("VERTEX_API_KEY",),
        "base_url": ("VERTEX_BASE_URL",),
        "project": ("GOOGLE_CLOUD_PROJECT",),
        "location": ("GOOGLE_CLOUD_LOCATION",),
        "credentials": ("GOOGLE_APPLICATION_CREDENTIALS",),
    },
    "openai": {
        "api_key": ("OPENAI_API_KEY",),
        "base_url": ("OPENAI_BASE_URL",),
        "ipm": (f"{PREFIX}OPENAI_IPM",),
        "timeout": (f"{PREFIX}OPENAI_TIMEOUT",),
    },
    "azure": {
        "api_key": ("AZURE_OPENAI_API_KEY",),
        "base_url": ("AZURE_OPENAI_ENDPOINT",),
    },
}
"""The variables of the built-in providers by field. Their kind is their name."""
OWN_FIELDS: Final = {
    "google": {"api_key": "google_api_key", "base_url": "google_base_url"},
    "openai": {
        "api_key": "openai_api_key",
        "base_url": "openai_base_url",
        "ipm": "openai_ipm",
        "timeout": "openai_timeout",
    },
}
"""Fields of ``Settings`` that hold a value of a built-in provider, in place of ``providers``."""


_CHECKS: Final[Mapping[str, Callable[[object], object]]] = {
    "api_key": check_api_key,
    "base_url": check_base_url,
    "project": check_project,
    "location": check_location,
    "credentials": str,
}
"""By field: raises ValueError for a value that is not allowed."""


class ProviderSettings(BaseModel):
    """Settings of one provider. A limit that is None is that of all providers of the kind."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    name: str
    kind: Annotated[ProviderKind, LowercaseStr]
    """The API that the provider uses."""
    api_key: Secret = None
    base_url: OptionalStr = None
    """The address of the API; None means the vendor's."""
    project: Secret = None
    """Vertex AI: the project's ID or number. It is redacted everywhere, like a key."""
    location: OptionalStr = None
    """Vertex AI: ``global``, ``us``, ``eu`` or a region."""
    credentials: OptionalStr = None
    """Vertex AI: the path of a credentials file; None means Application Default Credentials."""
    ipm: OptionalPositiveFloat = None
    """Images per minute."""
    max_concurrent: OptionalPositiveInt = None
    """Requests in flight in this process."""
    timeout: OptionalSeconds = None
    """Time limit of a request in seconds."""
    breaker: Mapping[str, Any] | None = None
    """Breaker settings that differ from the general ones: ``{"fail_max": 5}``."""

    @property
    def vendor(self) -> str:
        """The vendor whose rows of the model table hold."""
        return _KINDS[self.kind].vendor

    @property
    def key(self) -> str | None:
        """The API key itself."""
        return None if self.api_key is None else self.api_key.get_secret_value()

    @model_validator(mode="before")
    @classmethod
    def _fields_of_kind(cls, values: Any) -> Any:
        """Fill in the kind of a built-in provider; reject fields that the provider does not have.

        Raises:
            ValueError: A field belongs to another kind, or to a field of ``Settings``.
        """
        if not isinstance(values, dict):
            return values
        name = values["name"]
        built_in = name in BUILT_IN
        kind = values.get("kind", name if built_in else None)
        if kind is None:
            raise ValueError(f"must be {_any_of(_KINDS)}")
        if built_in and kind != name:
            raise ValueError(f"{name} is built in, and its kind is {name}; choose another name")
        if isinstance(kind, str) and (known := _KINDS.get(kind.lower())) is not None:
            allowed = {"name", "kind", *known.account, *_LIMITS}
            for field in values.keys() & cls.model_fields.keys() - allowed:
                raise ValueError(f"kind {kind} has no {field}")
        for field in values.keys() & OWN_FIELDS.get(name, {}).keys():
            raise ValueError(f"set {OWN_FIELDS[name][field]} in place of {field} for {name}")
        return {**values, "kind": kind}

    @model_validator(mode="after")
    def _declared_account_is_valid(self) -> Self:
        """Check the account of a declared provider.

        The variables of Vertex AI and Azure belong to other software, too, so their values are
        checked only where a route uses them.
        """
        if self.name not in BUILT_IN:
            self.check_account()
        return self

    def check_account(self) -> None:
        """Check the values that select account and address.

        Raises:
            ValueError: A value is not allowed; the text names its variable.
        """
        variables = provider_variables(self.name, self.kind)
        for field in _KINDS[self.kind].account:
            try:
                _CHECKS[field](getattr(self, field))
            except ValueError as error:
                raise ValueError(f"{variables[field][0]} {error}") from None


def vendor_of(name: str) -> str:
    """Return the vendor of a built-in provider; any other name counts as a vendor."""
    return _KINDS[name].vendor if name in BUILT_IN else name


def limit_variables(name: str) -> dict[str, str]:
    """Return the variables of a provider's limits by field."""
    return {field: f"{PREFIX}{name.upper()}_{field.upper()}" for field in _LIMITS}


def provider_variables(name: str, kind: str) -> dict[str, tuple[str, ...]]:
    """Return the variables of a provider by field; the first one that is set counts."""
    limits = {field: (variable,) for field, variable in limit_variables(name).items()}
    if name in BUILT_IN:
        return {**limits, **BUILT_IN[name]}
    account = _KINDS[kind].account if kind in _KINDS else tuple(_CHECKS)
    return {**{field: (f"{name.upper()}_{field.upper()}",) for field in account}, **limits}


def check_names(names: Iterable[object], known: Iterable[str]) -> None:
    """Check that names may be declared, and that no two of them share a variable.

    Args:
        names: The names of providers, of which the built-in ones are allowed.
        known: The variables of all settings.

    Raises:
        ValueError: A name is malformed, or one of its variables has another meaning, too.
    """
    taken = {*known, *(each for fields in BUILT_IN.values() for each in chain(*fields.values()))}
    for name in names:
        if name in BUILT_IN:
            continue
        if not (isinstance(name, str) and len(name) <= _MAX_NAME and _NAME.fullmatch(name)):
            raise ValueError(
                f"a provider's name has at most {_MAX_NAME} small letters, digits and underscores, "
                f"and begins with a letter, unlike {ascii(name)[:60]}"
            )
        account = [f"{name.upper()}_{field.upper()}" for field in sorted(_CHECKS)]
        limits = limit_variables(name).values()
        for variable in (*account, *limits):
            if (
                variable in taken
                or variable.startswith(DECLARATION)
                or (variable in account and variable.startswith(PREFIX))
            ):
                raise ValueError(
                    f"the name {name} is not allowed, because {variable} has another meaning, too"
                )


def declared_names(variables: Iterable[str]) -> Iterator[str]:
    """Yield the names that variables declare, in lower case, whether they are allowed or not."""
    for variable in variables:
        if variable.upper().startswith(DECLARATION):
            yield variable[len(DECLARATION) :].lower()


def variables_of_providers(variables: Iterable[str]) -> Iterator[str]:
    """Yield the variables of all providers that are only for this package.

    Args:
        variables: Some variables, of which those that declare a provider are yielded, too.
    """
    declared = set(declared_names(variables))
    yield from (f"{DECLARATION}{name.upper()}" for name in declared)
    for name in (*BUILT_IN, *declared):
        yield from limit_variables(name).values()


def read_providers(environment: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """Return the settings of all providers that variables set, by name.

    Args:
        environment: The variables that are set, with their names in lower case.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in {*BUILT_IN, *declared_names(environment)}:
        declared = environment.get(f"{DECLARATION}{name}".lower())
        values: dict[str, Any] = {} if declared is None else {"kind": declared}
        kind = name if declared is None else declared.lower()
        for field, variables in provider_variables(name, kind).items():
            if field in OWN_FIELDS.get(name, {}):
                continue
            given = (environment.get(variable.lower()) for variable in variables)
            if (value := next(filter(None, given), None)) is not None:
                values[field] = value
        if values:
            found[name] = values
    return found


def ignored_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each variable of a declared provider that its kind does not have.

    Args:
        environment: The variables.
    """
    given = {variable.upper(): value.strip() for variable, value in environment.items()}
    for name in sorted(declared_names(given)):
        kind = given[f"{DECLARATION}{name.upper()}"].lower()
        if kind not in _KINDS or name in BUILT_IN:
            continue
        for field in _CHECKS:
            variable = f"{name.upper()}_{field.upper()}"
            if field not in _KINDS[kind].account and given.get(variable):
                having = [each for each in _KINDS if field in _KINDS[each].account]
                yield (
                    f"{variable} is ignored: {DECLARATION}{name.upper()} is of kind {kind}, and "
                    f"only kind {_any_of(having)} has {field}"
                )


def _any_of(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
