"""Types of settings: each parses a value, or rejects it with a message; and names of routes."""

from __future__ import annotations

import logging
from functools import cache
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from resilient_imagen._validation import (
    blank_to_none,
    check_api_key,
    check_base_url,
    check_control_secret,
    check_prompt_hints,
    split_commas,
    strip_secret,
)
from resilient_imagen.models import ModelName
from resilient_imagen.reasons import Reason

__all__ = [
    "ApiKey",
    "BaseUrl",
    "CaptureContentFlag",
    "CommaList",
    "ControlSecret",
    "HedgeDelay",
    "LowercaseStr",
    "OptionalCount",
    "OptionalPositiveFloat",
    "OptionalPositiveInt",
    "OptionalSeconds",
    "OptionalStr",
    "OptionalWait",
    "PositiveFloat",
    "PositiveInt",
    "PromptHints",
    "Reasons",
    "RouteChain",
    "RouteName",
    "Seconds",
    "Secret",
    "parse_routes",
]

_log = logging.getLogger("resilient_imagen")


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


def _parse_reasons(value: object) -> object:
    """Return the reasons of a list; None if it is empty."""
    return (None if value is None else split_commas(value)) or None


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


def _check_hedge_delay(value: object, check: ValidatorFunctionWrapHandler) -> object:
    """Raise one error for both kinds of values, instead of one for each."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError("must be seconds greater than 0 and at most 86400, or p95") from None


@cache
def _warn_unknown_capture_word() -> None:
    _log.warning(
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT has an unknown value, so prompts are "
        "not recorded; known values are NO_CONTENT, SPAN_ONLY, EVENT_ONLY, SPAN_AND_EVENT"
    )


Seconds = Annotated[float, Field(gt=0, le=86_400)]
OptionalSeconds = Annotated[Seconds | None, BeforeValidator(blank_to_none)]
HedgeDelay = Annotated[
    Seconds | Literal["p95"] | None,
    BeforeValidator(_lowercase),
    BeforeValidator(blank_to_none),
    WrapValidator(_check_hedge_delay),
]
OptionalWait = Annotated[
    Annotated[float, Field(ge=0, le=86_400)] | None, BeforeValidator(blank_to_none)
]
OptionalCount = Annotated[
    Annotated[int, Field(ge=0, le=1_000_000_000)] | None, BeforeValidator(blank_to_none)
]
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000_000)]
OptionalPositiveInt = Annotated[PositiveInt | None, BeforeValidator(blank_to_none)]
PositiveFloat = Annotated[float, Field(gt=0, le=1_000_000)]
OptionalPositiveFloat = Annotated[PositiveFloat | None, BeforeValidator(blank_to_none)]
LowercaseStr = BeforeValidator(_lowercase)
OptionalStr = Annotated[str | None, BeforeValidator(blank_to_none)]
Secret = Annotated[SecretStr | None, BeforeValidator(strip_secret)]
ControlSecret = Annotated[SecretStr | None, BeforeValidator(check_control_secret)]
ApiKey = Annotated[SecretStr | None, BeforeValidator(check_api_key)]
BaseUrl = Annotated[str | None, BeforeValidator(check_base_url)]
CommaList = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
RouteChain = Annotated[tuple[RouteName, ...], BeforeValidator(parse_routes)]
Reasons = Annotated[frozenset[Reason] | None, BeforeValidator(_parse_reasons)]
PromptHints = Annotated[
    tuple[Literal["quality", "orientation"], ...], BeforeValidator(check_prompt_hints)
]
CaptureContentFlag = Annotated[bool, BeforeValidator(_parse_capture_content)]
