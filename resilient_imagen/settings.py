"""Settings: one class with all settings, and the only reader of the environment.

Each field has its variable, default and unit; the README's table is generated from them.
``_settings_types`` has the types of values, ``_settings_source`` reads the variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, Unpack

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from resilient_imagen._model_file import read_model_file
from resilient_imagen._provider_settings import (
    BUILT_IN,
    ProviderSettings,
    colliding_variable,
    is_provider_name,
    limit_variables,
    vendor_of,
)
from resilient_imagen._settings_source import (
    EnvironmentSource,
    complain_of,
    describe_errors,
    field_variables,
    ignored_provider_variables,
    unknown_variables,
)
from resilient_imagen._settings_types import (
    ApiKey,
    BaseUrl,
    CaptureContentFlag,
    CommaList,
    HedgeDelay,
    LowercaseStr,
    OptionalCount,
    OptionalPositiveFloat,
    OptionalSeconds,
    OptionalWait,
    PositiveFloat,
    ProviderArguments,
    RouteName,
    Seconds,
    SettingsArguments,
    blank_secret_to_none,
    blank_to_none,
    parse_routes,
    require_finite,
    split_commas,
)
from resilient_imagen._validation import explain
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.models import ModelInfo  # noqa: TC001 - typing.get_type_hints needs it
from resilient_imagen.reasons import POLICIES, Reason
from resilient_imagen.tracebacks import hide_frame_locals

__all__ = ["ProviderArguments", "ProviderSettings", "RouteName", "Settings", "SettingsArguments"]


_NO_PROVIDERS: Mapping[str, ProviderSettings] = {}


def _variable(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class Settings(BaseSettings):
    """Settings of a client, from the environment; keyword arguments override variables.

    Example: ``Settings(ipm=20, deadline=90)``.

    Raises:
        ConfigurationError: A value is not allowed. The text names the variable and allowed values.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
    )

    google_api_key: ApiKey = Field(
        None,
        validation_alias=_variable("GOOGLE_GENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
        description="The primary's key; the first of the three that is set. "
        "Missing: the route is off, with one warning.",
    )
    openai_api_key: ApiKey = Field(
        None,
        validation_alias=_variable("OPENAI_API_KEY"),
        description="The fallback's key. Missing: one warning, and the primary's error reaches "
        "the caller.",
    )
    google_base_url: BaseUrl = Field(
        None,
        validation_alias=_variable("GOOGLE_GEMINI_BASE_URL"),
        description="Where the Gemini API is; empty means Google's own.",
    )
    openai_base_url: BaseUrl = Field(
        None,
        validation_alias=_variable("OPENAI_BASE_URL"),
        description="Where the OpenAI API is; empty means OpenAI's own.",
    )
    providers: Mapping[str, ProviderSettings] = Field(
        _NO_PROVIDERS,
        validation_alias=_variable("IMAGE_GEN_PROVIDER_<NAME>"),
        description="Declares a provider for IMAGE_GEN_ROUTES: google, vertex, openai or azure, "
        "the API that it speaks. `<NAME>_API_KEY` and `<NAME>_BASE_URL` select account and "
        "address; `IMAGE_GEN_<NAME>_IPM`, `_MAX_CONCURRENT` and `_TIMEOUT`, also for the built-in "
        "names, its limits.",
    )
    routes: Annotated[tuple[RouteName, ...], NoDecode] = Field(
        (RouteName("google:gemini-3-pro-image"), RouteName("openai:gpt-image-2.5-flare")),
        validation_alias=_variable("IMAGE_GEN_ROUTES"),
        description="Ordered list of provider:model, which may include several models of a vendor; "
        "provider:deployment=model where the endpoint knows the model by another name. "
        "google+google_b:model is one step with two accounts: each call goes to the account that "
        "can send soonest, and the other one is tried before the next step.",
    )
    models: Annotated[Path | None, BeforeValidator(blank_to_none)] = Field(
        None,
        validation_alias=_variable("IMAGE_GEN_MODELS"),
        description="A TOML file with further rows of the model table: limits, sizes, qualities, "
        "prices and typical seconds of models that this version does not know.",
    )
    max_concurrent: int = Field(
        4,
        ge=1,
        validation_alias=_variable("IMAGE_GEN_MAX_CONCURRENT"),
        description="Requests in flight per provider and process.",
    )
    ipm: PositiveFloat = Field(
        10,
        validation_alias=_variable("IMAGE_GEN_IPM"),
        description="Images per minute per provider, paced. Every request sent takes a place, "
        "retries too.",
    )
    openai_ipm: OptionalPositiveFloat = Field(
        None,
        validation_alias=_variable("IMAGE_GEN_OPENAI_IPM"),
        description="The same for OpenAI; empty means as IMAGE_GEN_IPM.",
    )
    burst: int = Field(
        1,
        ge=1,
        validation_alias=_variable("IMAGE_GEN_BURST"),
        description="Places that may be taken at once after a quiet time; 1 is even spacing.",
    )
    max_queue: OptionalCount = Field(
        None,
        validation_alias=_variable("IMAGE_GEN_MAX_QUEUE"),
        description="Callers waiting per provider; one more goes to the next route.",
    )
    max_retries: int = Field(
        2,
        ge=0,
        le=20,
        validation_alias=_variable("IMAGE_GEN_MAX_RETRIES"),
        description="Retries of the same route after the first try; at most 1 on a route reached "
        "by fallback.",
    )
    retry_base_delay: Annotated[float, Field(ge=0, le=3600), AfterValidator(require_finite)] = (
        Field(
            5,
            validation_alias=_variable("IMAGE_GEN_RETRY_BASE_DELAY"),
            description="Seconds before the first retry; doubles. Jitter shortens it by up to "
            "30 %; a server's hint wins.",
        )
    )
    per_call_timeout: Seconds = Field(
        60,
        validation_alias=_variable("IMAGE_GEN_PER_CALL_TIMEOUT"),
        description="Time limit of a request in seconds; see IMAGE_GEN_ON_TIMEOUT.",
    )
    openai_timeout: Seconds = Field(
        180,
        validation_alias=_variable("IMAGE_GEN_OPENAI_TIMEOUT"),
        description="The same for OpenAI, whose images of high quality take minutes.",
    )
    deadline: OptionalSeconds = Field(
        None,
        validation_alias=_variable("IMAGE_GEN_DEADLINE"),
        description="Seconds for a whole call, queueing, retries and fallback included, unless "
        "the call says otherwise.",
    )
    breaker_mode: Annotated[Literal["on", "off", "shadow"], LowercaseStr] = Field(
        "on",
        validation_alias=_variable("IMAGE_GEN_BREAKER_MODE"),
        description="on, off, or shadow: decide, record, let through.",
    )
    breaker_fail_max: int = Field(
        3,
        ge=1,
        validation_alias=_variable("IMAGE_GEN_BREAKER_FAIL_MAX"),
        description="Failures in a row that open the circuit.",
    )
    breaker_failure_rate: Annotated[float, Field(gt=0, le=1), AfterValidator(require_finite)] = (
        Field(
            0.5,
            validation_alias=_variable("IMAGE_GEN_BREAKER_FAILURE_RATE"),
            description="Or this share of the requests of the last IMAGE_GEN_BREAKER_WINDOW "
            "seconds.",
        )
    )
    breaker_window: Seconds = Field(
        300,
        validation_alias=_variable("IMAGE_GEN_BREAKER_WINDOW"),
        description="Seconds over which the failure rate is counted.",
    )
    breaker_min_calls: int = Field(
        6,
        ge=1,
        validation_alias=_variable("IMAGE_GEN_BREAKER_MIN_CALLS"),
        description="Requests in the window before its rate means anything.",
    )
    breaker_slow_call: OptionalSeconds = Field(
        None,
        validation_alias=_variable("IMAGE_GEN_BREAKER_SLOW_CALL"),
        description="Seconds after which a request in flight counts as failed; off by default.",
    )
    breaker_reset_timeout: Seconds = Field(
        60,
        validation_alias=_variable("IMAGE_GEN_BREAKER_RESET_TIMEOUT"),
        description="Length of an open period in seconds, plus up to 10 % jitter; after a failed "
        "probe, the minimum.",
    )
    breaker_reset_factor: Annotated[float, Field(ge=0), AfterValidator(require_finite)] = Field(
        5,
        validation_alias=_variable("IMAGE_GEN_BREAKER_RESET_FACTOR"),
        description="Length of an open period after a failed probe, as a multiple of the seconds "
        "from sending that probe to its failure; 0: always IMAGE_GEN_BREAKER_RESET_TIMEOUT.",
    )
    breaker_reset_max: Seconds = Field(
        600,
        validation_alias=_variable("IMAGE_GEN_BREAKER_RESET_MAX"),
        description="Maximum open period in seconds, before jitter; a fatal failure with a longer "
        "hint of the server may extend it to 24 hours.",
    )
    breaker_half_open_calls: int = Field(
        1,
        ge=1,
        validation_alias=_variable("IMAGE_GEN_BREAKER_HALF_OPEN_CALLS"),
        description="Probes at a time, also the successes needed to close.",
    )
    hedge_probe_after: OptionalSeconds = Field(
        3,
        validation_alias=_variable("IMAGE_GEN_HEDGE_PROBE_AFTER"),
        description="Seconds after which the caller whose request is a probe starts the next route "
        "beside it; empty or off: only after the probe has failed.",
    )
    hedge_after: HedgeDelay = Field(
        None,
        validation_alias=_variable("IMAGE_GEN_HEDGE_AFTER"),
        description="The same for any request: seconds, or p95 (of the route's latencies at that "
        "resolution); off by default.",
    )
    hedge_budget: Annotated[float, Field(ge=0, le=1), AfterValidator(require_finite)] = Field(
        0.05,
        validation_alias=_variable("IMAGE_GEN_HEDGE_BUDGET"),
        description="Maximum share of the calls of the last hour that IMAGE_GEN_HEDGE_AFTER may "
        "hedge; at least one, unless it is 0.",
    )
    on_timeout: Annotated[Literal["keep", "abandon"], LowercaseStr] = Field(
        "keep",
        validation_alias=_variable("IMAGE_GEN_ON_TIMEOUT"),
        description="When a request exceeds its time limit: keep it beside the next route until "
        "one delivers, at most until the deadline or twice its limit; or abandon it.",
    )
    max_wait: OptionalWait = Field(
        None,
        validation_alias=_variable("IMAGE_GEN_MAX_WAIT"),
        description="Maximum seconds of queueing at one provider; a caller that would wait longer "
        "goes to the next route at once, if one is usable.",
    )
    when_all_open: Annotated[Literal["fail", "wait"], LowercaseStr] = Field(
        "fail",
        validation_alias=_variable("IMAGE_GEN_WHEN_ALL_OPEN"),
        description="fail at once, or wait for the first circuit to let a probe through, within "
        "the deadline.",
    )
    force_open: CommaList = Field(
        (),
        validation_alias=_variable("IMAGE_GEN_FORCE_OPEN"),
        description="Comma list of providers to skip: tries the fallback without touching code.",
    )
    fallback_on: Annotated[frozenset[Reason] | None, NoDecode, BeforeValidator(blank_to_none)] = (
        Field(
            None,
            validation_alias=_variable("IMAGE_GEN_FALLBACK_ON"),
            description="Comma list of reasons that go on to the next route; empty means every "
            "reason marked so. Without circuit_open in it an open circuit is the caller's error.",
        )
    )
    openai_quality: Annotated[
        Literal["low", "medium", "high", "xhigh", "max", "auto"], LowercaseStr
    ] = Field(
        "high",
        validation_alias=_variable("IMAGE_GEN_OPENAI_QUALITY"),
        description="Quality asked of OpenAI; xhigh and max where the model has them.",
    )
    prompt_hints: Annotated[tuple[Literal["quality", "orientation"], ...], NoDecode] = Field(
        ("quality", "orientation"),
        validation_alias=_variable("IMAGE_GEN_PROMPT_HINTS"),
        description="Text added to the prompt for Google: quality (only without references), "
        "orientation, both, or none. Results list it in adjustments.",
    )
    fit: Annotated[Literal["crop", "pad", "none", "exact"], LowercaseStr] = Field(
        "crop",
        validation_alias=_variable("IMAGE_GEN_FIT"),
        description="What to do with an image more than 2 % off the requested ratio; exact fits to "
        "the pixel always.",
    )
    strict_references: bool = Field(
        False,
        validation_alias=_variable("IMAGE_GEN_STRICT_REFERENCES"),
        description="Raise for a reference that cannot be read, instead of going on without it.",
    )
    max_reference_mb: OptionalPositiveFloat = Field(
        None,
        validation_alias=_variable("IMAGE_GEN_MAX_REFERENCE_MB"),
        description="Megabytes that the references of one request may have together, where that "
        "is less than the model takes; larger ones are made smaller, and the result says so.",
    )
    reference_http_urls: bool = Field(
        False,
        validation_alias=_variable("IMAGE_GEN_REFERENCE_HTTP_URLS"),
        description="Also load references from plain http addresses.",
    )
    reference_private_urls: bool = Field(
        False,
        validation_alias=_variable("IMAGE_GEN_REFERENCE_PRIVATE_URLS"),
        description="Also load references from private, loopback and link-local addresses.",
    )
    shadow: Annotated[Mapping[str, Any] | None, NoDecode, BeforeValidator(blank_to_none)] = Field(
        None,
        validation_alias=_variable("IMAGE_GEN_SHADOW"),
        description="Breaker settings to run beside the live ones without effect, such as "
        "reset_timeout=30,fail_max=5; what they would have done is reported.",
    )
    redis_url: Annotated[SecretStr | None, BeforeValidator(blank_secret_to_none)] = Field(
        None,
        validation_alias=_variable("IMAGE_GEN_REDIS_URL"),
        description="Share breakers and pacing between processes.",
    )

    capture_content: CaptureContentFlag = Field(
        False,
        validation_alias=_variable("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"),
        description="SPAN_ONLY or SPAN_AND_EVENT: prompts are recorded on spans. Images never are.",
    )

    _model_rows: Mapping[str, ModelInfo] = PrivateAttr(default_factory=dict)
    _unknown: tuple[str, ...] = PrivateAttr(())
    _ignored: tuple[str, ...] = PrivateAttr(())

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
        """Read the environment; keyword arguments, by field name or variable, take precedence."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(describe_errors(error, Settings)) from None
        if self.models is not None:
            try:
                self._model_rows = read_model_file(self.models)
            except ValueError as error:
                raise ConfigurationError(f"IMAGE_GEN_MODELS: {error}") from None
        self._unknown = unknown_variables(Settings)
        if "providers" not in values:
            self._ignored = ignored_provider_variables()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a warning for each variable that was set and has no effect.

        These are unknown IMAGE_GEN_* variables, and variables of a declared provider that its kind
        does not have.
        """
        return (*(complain_of(name, Settings) for name in self._unknown), *self._ignored)

    @field_validator("providers", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """Give each provider its name, after a check that its variables are its alone."""
        if not isinstance(value, Mapping):
            return value
        for name in value.keys() - BUILT_IN.keys():
            if not is_provider_name(name):
                raise ValueError(
                    "a provider's name has at most 40 small letters, digits and underscores, and "
                    f"begins with a letter, unlike {ascii(name)[:60]}"
                )
            if (variable := colliding_variable(name, field_variables(cls))) is not None:
                raise ValueError(
                    f"the name {name} is not possible, as {variable} has another meaning, too"
                )
        return {
            name: {**given, "name": name} if isinstance(given, Mapping) else given
            for name, given in value.items()
        }

    @field_validator("routes", mode="before")
    @classmethod
    def _routes(cls, value: object) -> tuple[RouteName, ...]:
        return parse_routes(value)

    @field_validator("fallback_on", mode="before")
    @classmethod
    def _fallback_on(cls, value: object) -> object:
        return (None if value is None else split_commas(value)) or None

    @field_validator("prompt_hints", mode="before")
    @classmethod
    def _prompt_hints(cls, value: Any) -> tuple[str, ...]:
        value = blank_to_none(value.lower() if isinstance(value, str) else value)
        hints = tuple(dict.fromkeys(() if value is None else split_commas(value)))
        if not {"quality", "orientation"}.issuperset(hints):
            raise ValueError("must be quality, orientation, both of them with a comma, or none")
        return hints

    @field_validator("shadow", mode="before")
    @classmethod
    def _shadow(cls, value: Any) -> Any:
        """Parse breaker settings without their prefix, each by the live setting's rules."""
        if value is None:
            return None
        if isinstance(value, str):
            value = dict(part.partition("=")[::2] for part in split_commas(value))
        if not isinstance(value, Mapping):
            raise ValueError("must be NAME=VALUE, comma-separated, or a dict")  # noqa: TRY004 - pydantic lets a TypeError through
        named = ((str(name).strip(), given) for name, given in value.items())
        return {name: cls._shadowed(name, given) for name, given in named}

    @classmethod
    def _shadowed(cls, name: str, given: object) -> object:
        prefix = "breaker_"
        known = [each.removeprefix(prefix) for each in cls.model_fields if each.startswith(prefix)]
        known.remove("mode")
        if name not in known:
            raise ValueError(f"must be NAME=VALUE, comma-separated; names: {', '.join(known)}")
        field = cls.model_fields[prefix + name]
        allowed: Any = Annotated[field.annotation, *field.metadata]
        checked: TypeAdapter[object] = TypeAdapter(allowed)
        try:
            return checked.validate_python(given.strip() if isinstance(given, str) else given)
        except ValidationError as error:
            raise ValueError(f"{name}: {explain(error.errors()[0])}") from None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.breaker_reset_max < self.breaker_reset_timeout:
            raise ValueError(
                "IMAGE_GEN_BREAKER_RESET_MAX must not be less than IMAGE_GEN_BREAKER_RESET_TIMEOUT"
            )
        shadow = {**dict.fromkeys(("reset_timeout", "reset_max")), **(self.shadow or {})}
        longest = shadow["reset_max"] or self.breaker_reset_max
        if longest < (shadow["reset_timeout"] or self.breaker_reset_timeout):
            raise ValueError("IMAGE_GEN_SHADOW: reset_max must not be less than reset_timeout")
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
        own: dict[str, Any] = {}
        if name == "google":
            own = {"api_key": self.google_api_key, "base_url": self.google_base_url}
        elif name == "openai":
            own = {"api_key": self.openai_api_key, "base_url": self.openai_base_url}
        found = found.model_copy(update=own)
        try:
            found.check_account()
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        return found

    def timeout_for(self, provider: str, vendor: str | None = None) -> float:
        """Return the attempt timeout in seconds.

        Args:
            provider: The provider's name.
            vendor: The vendor whose models it serves; None means by the name.
        """
        own = self.providers.get(provider)
        if own is not None and own.timeout is not None:
            return own.timeout
        openai = self._vendor(provider, vendor) == "openai"
        return self.openai_timeout if openai else self.per_call_timeout

    def timeout_variable(self, provider: str, vendor: str | None = None) -> str:
        """Return the variable that holds the attempt timeout; arguments as in ``timeout_for``."""
        own = self.providers.get(provider)
        if own is not None and own.timeout is not None:
            return limit_variables(provider)["timeout"]
        openai = self._vendor(provider, vendor) == "openai"
        return "IMAGE_GEN_OPENAI_TIMEOUT" if openai else "IMAGE_GEN_PER_CALL_TIMEOUT"

    def ipm_for(self, provider: str, vendor: str | None = None) -> float:
        """Return the images per minute; arguments as in ``timeout_for``."""
        own = self.providers.get(provider)
        if own is not None and own.ipm is not None:
            return own.ipm
        if self._vendor(provider, vendor) == "openai" and self.openai_ipm is not None:
            return self.openai_ipm
        return self.ipm

    def max_concurrent_for(self, provider: str) -> int:
        """Return the maximum number of requests in flight of a provider."""
        own = self.providers.get(provider)
        if own is not None and own.max_concurrent is not None:
            return own.max_concurrent
        return self.max_concurrent

    def _vendor(self, provider: str, vendor: str | None) -> str:
        if vendor is not None:
            return vendor
        declared = self.providers.get(provider)
        return vendor_of(provider) if declared is None else declared.vendor
