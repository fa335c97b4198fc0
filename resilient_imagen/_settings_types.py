"""Types of setting values: each parses a value, or rejects it with a clear message."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypedDict
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from resilient_imagen.models import ModelName

__all__ = [
    "ApiKey",
    "BaseUrl",
    "CaptureContentFlag",
    "CommaList",
    "LowercaseStr",
    "OptionalCount",
    "OptionalPositiveFloat",
    "OptionalSeconds",
    "PositiveFloat",
    "ProviderArguments",
    "ProviderKind",
    "RouteName",
    "Seconds",
    "SettingsArguments",
    "blank_secret_to_none",
    "blank_to_none",
    "check_api_key",
    "check_base_url",
    "parse_routes",
    "require_finite",
    "split_commas",
]

_log = logging.getLogger("resilient_imagen")

_OFF = frozenset({"", "off", "none", "no", "-"})


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


def require_finite(value: float) -> float:
    """Reject NaN and infinity."""
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def blank_secret_to_none(value: object) -> object:
    """Convert a blank secret to None, and strip white space such as a copied line break."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, str):
        return value.strip() or None
    return value


def check_api_key(value: object) -> object:
    """Strip a key; reject one that cannot be sent as a header."""
    key = blank_secret_to_none(value)
    if isinstance(key, str) and not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(
            "holds characters that no key has (a space, a line break or a letter beyond ASCII); "
            "copy it again"
        )
    return key


def check_base_url(value: Any) -> Any:
    """Check an API's address at start, so that the error names the variable."""
    value = blank_to_none(value)
    if isinstance(value, str):
        value = value.strip()
        try:
            parts = urlsplit(value)
            fine = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            fine = False
        if not fine:
            raise ValueError("must be an address such as https://host or https://host:port/path")
        if parts.username or parts.password:
            raise ValueError("must not hold a user name or a password")
    return value


def _lowercase(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _parse_capture_content(value: object) -> object:
    """Parse OpenTelemetry's words for content capture; return whether spans may record content."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in {"span_only", "span_and_event", "true"}:
            return True
        if word in {"no_content", "event_only", "false"}:
            return False
        if word:  # a warning, not an error: other packages read the variable with more words
            _warn_unknown_capture_word()
        return False
    return value


@cache
def _warn_unknown_capture_word() -> None:
    _log.warning(
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT holds no word that is known here, so "
        "prompts are not recorded; known are NO_CONTENT, SPAN_ONLY, EVENT_ONLY, SPAN_AND_EVENT"
    )


class RouteName(str):
    """``provider:model`` or ``provider:deployment=model``, one entry of IMAGE_GEN_ROUTES.

    ``provider+provider:model`` is one step of the chain with several accounts for the same model.
    """

    __slots__ = ()

    @property
    def provider(self) -> str:
        """The part before the colon; of a step with several accounts, the first one."""
        return self.partition(":")[0].partition("+")[0]

    @property
    def accounts(self) -> tuple[RouteName, ...]:
        """The routes of the step, one for each account, in order."""
        providers, _, model = self.partition(":")
        return tuple(RouteName(f"{provider}:{model}") for provider in providers.split("+"))

    @property
    def model(self) -> ModelName:
        """The model, with its deployment if the route names one."""
        deployment, separator, model = self.partition(":")[2].partition("=")
        return ModelName(model, deployment) if separator else ModelName(deployment)

    @property
    def key(self) -> str:
        """``provider:model``, which identifies the route in results, telemetry and recordings."""
        return f"{self.provider}:{self.model}"


def parse_routes(value: object) -> tuple[RouteName, ...]:
    """Return the steps of a chain of routes, given as a string with commas or as strings.

    Raises:
        ValueError: An entry is malformed, or two name the same account and model.
    """
    steps = tuple(map(RouteName, split_commas(value)))
    if not steps:
        raise ValueError("must name at least one provider:model")
    routes = [route for step in steps for route in step.accounts]
    for route in routes:
        parts = (route.provider, route.model, route.model.deployment)
        if not all(parts) or "=" in route.model or any(c.isspace() for c in route):
            raise ValueError(
                "must be provider:model or provider:deployment=model, comma-separated, without "
                "spaces inside; several accounts of one step are provider+provider:model"
            )
    if len({route.key for route in routes}) != len(routes):
        raise ValueError("names the same provider:model twice")
    return steps


Seconds = Annotated[float, Field(gt=0, le=86_400), AfterValidator(require_finite)]
OptionalSeconds = Annotated[Seconds | None, BeforeValidator(blank_to_none)]
HedgeDelay = Annotated[
    Seconds | Literal["p95"] | None, BeforeValidator(_lowercase), BeforeValidator(blank_to_none)
]
OptionalWait = Annotated[
    Annotated[float, Field(ge=0, le=86_400), AfterValidator(require_finite)] | None,
    BeforeValidator(blank_to_none),
]
OptionalCount = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(blank_to_none)]
PositiveFloat = Annotated[float, Field(gt=0, le=1_000_000), AfterValidator(require_finite)]
OptionalPositiveFloat = Annotated[PositiveFloat | None, BeforeValidator(blank_to_none)]
ApiKey = Annotated[SecretStr | None, BeforeValidator(check_api_key)]
BaseUrl = Annotated[str | None, BeforeValidator(check_base_url)]
LowercaseStr = BeforeValidator(_lowercase)
CaptureContentFlag = Annotated[bool, BeforeValidator(_parse_capture_content)]
CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]


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
    openai_quality: Literal["low", "medium", "high", "xhigh", "max", "auto"]
    prompt_hints: str | Iterable[str]
    fit: Literal["crop", "pad", "none", "exact"]
    strict_references: bool
    max_reference_mb: float | None
    reference_http_urls: bool
    reference_private_urls: bool
    shadow: str | Mapping[str, object] | None
    redis_url: str | SecretStr | None
    capture_content: bool
