"""Settings: one class with all settings, and the only reader of the environment.

A field's variable is IMAGE_GEN_ and the field's name in upper case, unless ``_variables`` names
others. Its type has the limits, and its docstring the meaning and the unit; the tables of the
guides are generated from them. ``_settings_types`` has the types, ``_settings_source`` reads the
variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypedDict, Unpack

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from resilient_imagen._model_file import read_model_file
from resilient_imagen._provider_settings import (
    BUILT_IN,
    OWN_FIELDS,
    PREFIX,
    ProviderArguments,
    ProviderSettings,
    check_names,
    limit_variables,
    vendor_of,
)
from resilient_imagen._settings_source import (
    EnvironmentSource,
    describe_errors,
    environment_warnings,
    field_variables,
)
from resilient_imagen._settings_types import (
    ApiKey,
    BaseUrl,
    CaptureContentFlag,
    CommaList,
    ControlSecret,
    HedgeDelay,
    LowercaseStr,
    OptionalCount,
    OptionalPositiveFloat,
    OptionalSeconds,
    OptionalStr,
    OptionalWait,
    PositiveFloat,
    PositiveInt,
    PromptHints,
    Reasons,
    RouteChain,
    RouteName,
    Seconds,
    Secret,
)
from resilient_imagen._validation import blank_to_none, check_field, split_commas
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.models import ModelInfo, Quality  # noqa: TC001 - get_type_hints needs it
from resilient_imagen.reasons import POLICIES, Reason
from resilient_imagen.tracebacks import hide_frame_locals

__all__ = ["ProviderArguments", "ProviderSettings", "RouteName", "Settings", "SettingsArguments"]


def _variables(*names: str) -> Any:
    """Name the variables of a field, in place of the usual one; the first that is set counts."""
    return Field(validation_alias=AliasChoices(*names))


class Settings(BaseSettings):
    """Settings of a client, from the environment; keyword arguments override variables.

    Example: ``Settings(ipm=20, deadline=90)``.

    Raises:
        ConfigurationError: A value is not allowed. The text names the variable and allowed values.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=PREFIX,
        enable_decoding=False,  # lists are separated by commas, they are not JSON
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
    )

    # -- providers and routes --

    google_api_key: Annotated[
        ApiKey, _variables("GOOGLE_GENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY")
    ] = None
    """The primary's key; the first of the three that is set. Missing: the route is off, with one
    warning."""
    openai_api_key: Annotated[ApiKey, _variables("OPENAI_API_KEY")] = None
    """The fallback's key. Missing: one warning, and the primary's error reaches the caller."""
    google_base_url: Annotated[BaseUrl, _variables("GOOGLE_GEMINI_BASE_URL")] = None
    """Address of the Gemini API; empty means Google's own."""
    openai_base_url: Annotated[BaseUrl, _variables("OPENAI_BASE_URL")] = None
    """Address of the OpenAI API; empty means OpenAI's own."""
    providers: Annotated[
        Mapping[str, ProviderSettings], _variables("IMAGE_GEN_PROVIDER_<NAME>")
    ] = {}
    """Declares a provider for IMAGE_GEN_ROUTES: google, vertex, openai or azure, the API that it
    uses. `<NAME>_API_KEY` and `<NAME>_BASE_URL` select account and address; `IMAGE_GEN_<NAME>_IPM`,
    `_MAX_CONCURRENT` and `_TIMEOUT`, also for the built-in names, its limits, and `_BREAKER` its
    breaker: fail_max=5,reset_timeout=30."""
    routes: RouteChain = (
        RouteName("google:gemini-3-pro-image"),
        RouteName("openai:gpt-image-2.5-flare"),
    )
    """Ordered list of provider:model, which may include several models of a vendor;
    provider:deployment=model where the endpoint knows the model by another name.
    google+google_b:model is one step with two accounts: each call goes to the account that can send
    soonest, and the other one is tried before the next step."""

    models: Annotated[Path | None, BeforeValidator(blank_to_none)] = None
    """A TOML file with further rows of the model table: limits, sizes, qualities, prices and
    typical seconds of models that this version does not know."""

    # -- pace --

    max_concurrent: PositiveInt = 4
    """Requests in flight per provider and process."""
    ipm: PositiveFloat = 10
    """Images per minute per provider, paced. Every request sent takes a place, retries too."""
    openai_ipm: OptionalPositiveFloat = None
    """The same for OpenAI; empty means as IMAGE_GEN_IPM."""
    burst: PositiveInt = 1
    """Requests that may be sent at once after an idle time; 1 is even spacing."""
    max_queue: OptionalCount = None
    """Callers waiting per provider; one more goes to the next route. Empty: no limit."""

    # -- retries and time limits --

    max_retries: Annotated[int, Field(ge=0, le=20)] = 2
    """Retries of the same route after the first try; at most 1 on a route reached by fallback."""
    retry_base_delay: Annotated[float, Field(ge=0, le=3600)] = 5
    """Seconds before the first retry; doubles. Jitter shortens it by up to 30 %; a server's hint
    wins."""
    per_call_timeout: Seconds = 60
    """Time limit of a request in seconds; see IMAGE_GEN_ON_TIMEOUT."""
    openai_timeout: Seconds = 180
    """The same for OpenAI, whose images of high quality take minutes."""
    deadline: OptionalSeconds = None
    """Seconds for a whole call, queueing, retries and fallback included, unless the call says
    otherwise."""

    # -- circuit breaker --

    breaker_mode: Annotated[Literal["on", "off", "shadow"], LowercaseStr] = "on"
    """on, off, or shadow: decide and record, but admit all calls."""
    breaker_fail_max: PositiveInt = 3
    """Failures in a row that open the circuit."""
    breaker_failure_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of failed requests in the last IMAGE_GEN_BREAKER_WINDOW seconds that opens it, too."""
    breaker_window: Seconds = 300
    """Seconds over which the failure rate is counted."""
    breaker_min_calls: PositiveInt = 6
    """Requests in the window below which its failure rate is ignored."""
    breaker_slow_call: OptionalSeconds = None
    """Seconds after which a request in flight counts as failed; off by default."""
    breaker_reset_timeout: Seconds = 60
    """Length of an open period in seconds, plus up to 10 % jitter; after a failed probe, the
    minimum."""
    breaker_reset_factor: Annotated[float, Field(ge=0)] = 5
    """Length of an open period after a failed probe, as a multiple of the seconds from sending that
    probe to its failure; 0: always IMAGE_GEN_BREAKER_RESET_TIMEOUT."""
    breaker_reset_max: Seconds = 600
    """Maximum open period in seconds, before jitter; a fatal failure with a longer hint of the
    server may extend it to 24 hours."""
    breaker_half_open_calls: PositiveInt = 1
    """Probes at a time, also the successes needed to close."""

    # -- overlapping requests --

    hedge_probe_after: OptionalSeconds = 3
    """Seconds after which the caller whose request is a probe starts the next route beside it;
    empty or off: only after the probe has failed."""
    hedge_after: HedgeDelay = None
    """The same for any request: seconds, or p95 (of the route's latencies at that resolution); off
    by default."""
    hedge_budget: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Maximum share of the calls of the last hour that IMAGE_GEN_HEDGE_AFTER may hedge; at least
    one, unless it is 0."""
    on_timeout: Annotated[Literal["keep", "abandon"], LowercaseStr] = "keep"
    """When a request exceeds its time limit: keep it beside the next route until one delivers, at
    most until the deadline or twice its limit; or abandon it."""

    # -- fallback --

    max_wait: OptionalWait = None
    """Maximum seconds of queueing at one provider; a caller that would wait longer goes to the next
    route at once, if one is usable."""
    when_all_open: Annotated[Literal["fail", "wait"], LowercaseStr] = "fail"
    """fail at once, or wait for the first circuit to let a probe through, within the deadline."""
    force_open: CommaList = ()
    """Comma list of providers to skip, for example to try the fallback."""
    fallback_on: Reasons = None
    """Comma list of reasons that lead to the next route; empty means the reasons that the table of
    reasons marks. Without circuit_open, an open circuit ends the call with an error."""

    # -- images and references --

    openai_quality: Annotated[Quality, LowercaseStr] = "high"
    """Quality asked of OpenAI; xhigh and max where the model has them."""
    prompt_hints: PromptHints = ("quality", "orientation")
    """Text added to the prompt for Google: quality (only without references), orientation, both, or
    none. Results list it in adjustments."""
    fit: Annotated[Literal["crop", "pad", "none", "exact"], LowercaseStr] = "crop"
    """How to fit an image more than 2 % off the requested ratio; exact fits to the pixel always."""
    strict_references: bool = False
    """Raise an error for a reference that cannot be read, instead of dropping it."""
    max_reference_mb: OptionalPositiveFloat = None
    """Megabytes that the references of one request may have together, where that is less than the
    model takes; larger ones are made smaller, and adjustments lists them."""
    reference_http_urls: bool = False
    """Also load references from plain http addresses."""
    reference_private_urls: bool = False
    """Also load references from private, loopback and link-local addresses."""

    # -- operation --

    _model_rows: Mapping[str, ModelInfo] = PrivateAttr(default_factory=dict)
    shadow: Annotated[Mapping[str, Any] | None, BeforeValidator(blank_to_none)] = None
    """Breaker settings to run beside the live ones without effect, such as
    reset_timeout=30,fail_max=5; their decisions are reported."""
    redis_url: Secret = None
    """Share breakers and rate limits between processes."""
    control: Annotated[Literal["on", "off"], LowercaseStr] = "on"
    """off: orders of operators are ignored, from every source."""
    control_secret: ControlSecret = None
    """Secret of at least 16 characters with which orders are signed; unsigned ones are ignored
    then."""
    control_file: OptionalStr = None
    """Path of a file with orders for the processes of this machine, read within a second after each
    change."""
    capture_content: Annotated[
        CaptureContentFlag, _variables("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT")
    ] = False
    """SPAN_ONLY or SPAN_AND_EVENT: prompts are recorded on spans. Images never are."""

    _warnings: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use keyword arguments, then the environment, and no other sources."""
        del env_settings, dotenv_settings, file_secret_settings
        return init_settings, EnvironmentSource(settings_cls)

    @hide_frame_locals
    def __init__(self, **values: Unpack[SettingsArguments]) -> None:
        """Read the environment; keyword arguments take precedence."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(describe_errors(error, Settings)) from None
        if self.models is not None:
            try:
                self._model_rows = read_model_file(self.models)
            except ValueError as error:
                raise ConfigurationError(f"IMAGE_GEN_MODELS: {error}") from None
        self._warnings = environment_warnings(Settings, declared="providers" not in values)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a warning for each variable that was set and has no effect.

        These are unknown IMAGE_GEN_* variables, and variables of a declared provider that its kind
        does not have.
        """
        return self._warnings

    @field_validator("providers", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """Check the providers' names, and give each provider its name."""
        if not isinstance(value, Mapping):
            return value
        check_names(value, chain.from_iterable(field_variables(cls).values()))
        return {
            name: cls._of_provider(name, given) if isinstance(given, Mapping) else given
            for name, given in value.items()
        }

    @classmethod
    def _of_provider(cls, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        breaker = blank_to_none(given.get("breaker"))
        if breaker is None:
            return {**given, "name": name}
        try:
            return {**given, "name": name, "breaker": cls._breaker_changes(breaker)}
        except ValueError as error:
            raise ValueError(f"{limit_variables(name)['breaker']}: {error}") from None

    @field_validator("shadow", mode="before")
    @classmethod
    def _shadow(cls, value: Any) -> Any:
        return None if value is None else cls._breaker_changes(value)

    @classmethod
    def _breaker_changes(cls, value: Any) -> dict[str, object]:
        """Parse breaker settings without their prefix, each by the live setting's rules."""
        if isinstance(value, str):
            value = dict(part.partition("=")[::2] for part in split_commas(value))
        if not isinstance(value, Mapping):
            raise ValueError("must be NAME=VALUE, comma-separated, or a dict")  # noqa: TRY004 - pydantic lets a TypeError through
        named = ((str(name).strip(), given) for name, given in value.items())
        return {name: cls._breaker_change(name, given) for name, given in named}

    @classmethod
    def _breaker_change(cls, name: str, given: object) -> object:
        prefix = "breaker_"
        known = [each.removeprefix(prefix) for each in cls.model_fields if each.startswith(prefix)]
        known.remove("mode")
        if name not in known:
            raise ValueError(f"must be NAME=VALUE, comma-separated; names: {', '.join(known)}")
        try:
            return check_field(cls.model_fields[prefix + name], given)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.breaker_reset_max < self.breaker_reset_timeout:
            raise ValueError(
                "IMAGE_GEN_BREAKER_RESET_MAX must not be less than IMAGE_GEN_BREAKER_RESET_TIMEOUT"
                f": {self.breaker_reset_max:g} is less than {self.breaker_reset_timeout:g}"
            )
        shadow = {**dict.fromkeys(("reset_timeout", "reset_max")), **(self.shadow or {})}
        longest = shadow["reset_max"] or self.breaker_reset_max
        if longest < (shadow["reset_timeout"] or self.breaker_reset_timeout):
            raise ValueError("IMAGE_GEN_SHADOW: reset_max must not be less than reset_timeout")
        for name in self.providers:
            own = self.breaker_settings(name)
            if own["reset_max"] < own["reset_timeout"]:
                variable = limit_variables(name)["breaker"]
                raise ValueError(f"{variable}: reset_max must not be less than reset_timeout")
        return self

    @property
    def accounts(self) -> tuple[RouteName, ...]:
        """Every account's route, in order: ``routes`` without grouping by steps."""
        return tuple(account for step in self.routes for account in step.accounts)

    @property
    def model_rows(self) -> Mapping[str, ModelInfo]:
        """The rows of ``models``, the file, by the model's name."""
        return self._model_rows

    def falls_back_on(self, reason: Reason) -> bool:
        """Return whether a call continues on the next route after a failure with ``reason``."""
        if self.fallback_on is not None:
            return reason in self.fallback_on
        return POLICIES[reason].next_route

    def provider(self, name: str) -> ProviderSettings | None:
        """Return the settings of a provider, built in or declared; None for any other name.

        Raises:
            ConfigurationError: A value is not allowed. The values of Vertex AI and Azure are
                checked here: their variables belong to other software, too.
        """
        found = self.providers.get(name)
        if name in BUILT_IN and found is None:
            found = ProviderSettings.model_validate({"name": name})
        if found is None:
            return None
        own = {field: getattr(self, ours) for field, ours in OWN_FIELDS.get(name, {}).items()}
        found = found.model_copy(update=own)
        try:
            found.check_account()
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        return found

    def breaker_settings(self, provider: str) -> dict[str, Any]:
        """Return the settings of a provider's breakers: those of all, and its own differences."""
        prefix = "breaker_"
        fields = [name for name in type(self).model_fields if name.startswith(prefix)]
        found = {name.removeprefix(prefix): getattr(self, name) for name in fields}
        own = self.providers.get(provider)
        return found if own is None or own.breaker is None else {**found, **own.breaker}

    def timeout_for(self, provider: str, vendor: str | None = None) -> float:
        """Return the attempt timeout in seconds.

        Args:
            provider: The provider's name.
            vendor: The vendor whose models it serves; None means by the name.
        """
        own: float | None = self._own_limit(provider, "timeout")
        if own is not None:
            return own
        return self.openai_timeout if self._is_openai(provider, vendor) else self.per_call_timeout

    def timeout_variable(self, provider: str, vendor: str | None = None) -> str:
        """Return the variable that holds the attempt timeout; arguments as in ``timeout_for``."""
        if self._own_limit(provider, "timeout") is not None:
            return limit_variables(provider)["timeout"]
        openai = self._is_openai(provider, vendor)
        return f"{PREFIX}{'OPENAI' if openai else 'PER_CALL'}_TIMEOUT"

    def ipm_for(self, provider: str, vendor: str | None = None) -> float:
        """Return the images per minute; arguments as in ``timeout_for``."""
        openai = self.openai_ipm if self._is_openai(provider, vendor) else None
        return self._own_limit(provider, "ipm") or openai or self.ipm

    def max_concurrent_for(self, provider: str) -> int:
        """Return the maximum number of requests in flight of a provider."""
        return self._own_limit(provider, "max_concurrent") or self.max_concurrent

    def _own_limit(self, provider: str, field: str) -> Any:
        """Return a limit that a provider does not share with others; None if it has none."""
        return getattr(self.providers.get(provider), field, None)

    def _is_openai(self, provider: str, vendor: str | None) -> bool:
        declared = self.providers.get(provider)
        known = vendor_of(provider) if declared is None else declared.vendor
        return (known if vendor is None else vendor) == "openai"


class SettingsArguments(TypedDict, total=False):
    """Keyword arguments of ``Settings``, for type checkers, editors and forwarding functions.

    If a field's type differs from the type that it is parsed from, both are allowed: a
    comma-separated str in place of a tuple, a str in place of a secret.
    """

    google_api_key: str | SecretStr | None
    openai_api_key: str | SecretStr | None
    google_base_url: str | None
    openai_base_url: str | None
    providers: Mapping[str, ProviderArguments]
    routes: str | Iterable[str]
    models: str | Path | None
    max_concurrent: int
    ipm: float
    openai_ipm: float | None
    burst: int
    max_queue: int | None
    max_retries: int
    retry_base_delay: float
    per_call_timeout: float
    openai_timeout: float
    deadline: float | None
    breaker_mode: Literal["on", "off", "shadow"]
    breaker_fail_max: int
    breaker_failure_rate: float
    breaker_window: float
    breaker_min_calls: int
    breaker_slow_call: float | None
    breaker_reset_timeout: float
    breaker_reset_factor: float
    breaker_reset_max: float
    breaker_half_open_calls: int
    hedge_probe_after: float | None
    hedge_after: float | Literal["p95"] | None
    hedge_budget: float
    on_timeout: Literal["keep", "abandon"]
    max_wait: float | None
    when_all_open: Literal["fail", "wait"]
    force_open: str | Iterable[str]
    fallback_on: str | Iterable[str] | None
    openai_quality: Quality
    prompt_hints: str | Iterable[str]
    fit: Literal["crop", "pad", "none", "exact"]
    strict_references: bool
    max_reference_mb: float | None
    reference_http_urls: bool
    reference_private_urls: bool
    shadow: str | Mapping[str, object] | None
    redis_url: str | SecretStr | None
    control: Literal["on", "off"]
    control_secret: str | SecretStr | None
    control_file: str | None
    capture_content: bool
