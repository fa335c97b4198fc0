"""Attributes of events, under the names of ``names``, for spans, metrics and log records."""

from __future__ import annotations

import re
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit

from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry import names
from resilient_imagen.telemetry.sanitize import safe_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.circuitbreaker import BreakerMetrics
    from resilient_imagen.telemetry import events

__all__ = [
    "Attributes",
    "attempt_error",
    "breaker_numbers",
    "of_attempt",
    "of_attempt_end",
    "of_reject",
    "of_request_end",
    "of_request_start",
    "request_error",
    "rounded",
    "route",
    "verdict",
]

Attributes: TypeAlias = "dict[str, str | bool | int | float | list[str]]"

WAITED_S: Final = 0.01
"""Seconds in the queue from which a request counts as having waited."""

_FINISH: Final = re.compile(r"[A-Z_]{1,40}")
"""A finish reason of the vendor. Any other string may repeat the prompt."""
_PORTS: Final[Mapping[str, int]] = {"https": 443, "http": 80}


_E = TypeVar("_E", bound="events.Event")


def _once(make: Callable[[_E], Attributes]) -> Callable[[_E], Attributes]:
    """Compute the attributes once per event; spans and log records share the same dict."""
    key = f"_{make.__name__}"

    @wraps(make)
    def of(event: _E) -> Attributes:
        kept = event.__dict__.get(key)
        if kept is None:
            kept = event.__dict__[key] = make(event)
        return kept

    return of


def of_request_start(event: events.RequestStarted) -> Attributes:
    """Return the attributes of a call that are known at its start."""
    return {
        names.OPERATION: event.request.operation,
        names.PROVIDER_PRIMARY: event.provider,
        names.CALL_ID: event.call_id,
        names.GEN_AI_OUTPUT_TYPE: "image",
    }


@_once
def of_request_end(event: events.RequestEnded) -> Attributes:
    """Return the attributes of a call that ended: all values that one search may combine."""
    found: Attributes = {
        names.OUTCOME: event.outcome,
        names.FALLBACK_USED: event.fallback_cause is not None,
        names.ATTEMPTS: event.attempts,
        names.RETRIES: event.retries,
        names.SHORT_CIRCUITS: event.short_circuits,
        names.QUEUE_S: rounded(event.queue_s),
        names.SETUP_S: rounded(event.setup_s),
        names.BACKOFF_TOTAL: rounded(event.backoff_s),
    }
    if event.queue_s >= WAITED_S:
        found[names.QUEUE_WAITED] = True
    _put(found, names.HEDGED, event.hedged)
    _put(found, names.CONTROL_ORDERS, event.orders)
    if event.fallback_cause is not None:
        found[names.FALLBACK_CAUSE] = str(event.fallback_cause)
        found[names.FALLBACK_FROM] = event.fallback_from or ""
    if event.result is not None:
        found[names.PROVIDER_SERVED] = event.result.provider
        found[names.MODEL_SERVED] = event.result.model
        _put(found, names.COST_USD, event.result.usage["cost_usd"])
        if event.result.dropped_references:
            found[names.REFERENCES_DROPPED] = len(event.result.dropped_references)
        if event.result.adjustments:
            found[names.ADJUSTMENTS] = "; ".join(event.result.adjustments)[:_MAX_NOTES]
    _put(found, names.ERROR_TYPE, request_error(event))
    return found


_MAX_NOTES = 255
"""Characters: some of Jaeger's stores do not search longer values."""


def request_error(event: events.RequestEnded) -> str | None:
    """Return the reason of the caller's error; None after success or cancellation."""
    if event.error is not None:
        return str(event.error.reason)
    return None if event.outcome in {names.SUCCESS, "cancelled"} else event.error_type


def of_attempt(event: events.AttemptStarted | events.AttemptEnded) -> Attributes:
    """Return the attributes of a request that are known when it is sent."""
    found: Attributes = {
        **_of_route(event.provider, event.model, event.base_url, event.telemetry_name),
        names.CALL_ID: event.call_id,
        names.OPERATION: event.operation,
        names.ATTEMPT_NUMBER: event.number,
        names.ATTEMPT_MAX: event.limit,
        names.ATTEMPT_RESOLUTION: event.resolution,
        names.ATTEMPT_TIME_LIMIT: float(event.time_limit_s),
        names.QUEUE_S: rounded(event.queue_s),
        names.CIRCUIT_BREAKER_STATE: event.admitted,
    }
    if event.queue_s >= WAITED_S:
        found[names.QUEUE_WAITED] = True
    if event.probe:
        found[names.CIRCUIT_BREAKER_PROBE] = True
    _put(found, names.ATTEMPT_OVERLAP, event.overlap)
    return found


@_once
def of_attempt_end(event: events.AttemptEnded) -> Attributes:
    """Return the attributes of a request that ended, and how the breaker counted it."""
    outcome = _outcome(event)
    found: Attributes = {
        names.ATTEMPT_OUTCOME: outcome,
        names.WILL_RETRY: event.retry_in is not None,
        names.CIRCUIT_BREAKER_COUNTED: verdict(event),
        **breaker_numbers(event.breaker),
    }
    if event.counted != found[names.CIRCUIT_BREAKER_COUNTED]:
        found[names.CIRCUIT_BREAKER_COUNTED_AS] = event.counted
    # After a success, consecutive failures are 0 and the threshold is irrelevant.
    if event.counted == names.SUCCESS:
        del (
            found[names.CIRCUIT_BREAKER_CONSECUTIVE],
            found[names.CIRCUIT_BREAKER_FAILURE_RATE_THRESHOLD],
        )
    if outcome != names.SUCCESS:
        _put(found, names.ATTEMPT_STATUS, event.status)
    _put(found, names.CIRCUIT_BREAKER_TRANSITION, event.transition)
    _put(found, names.RETRY_AFTER, event.retry_after)
    _put(found, names.RETRY_BACKOFF, event.retry_in)
    _put(found, names.ERROR_TYPE, attempt_error(event))
    if event.cut_short:
        found[names.ATTEMPT_CUT_SHORT] = True
    _put(found, names.ATTEMPT_CANCEL_CAUSE, event.cancel_cause)
    _put(found, names.ATTEMPT_UNUSED, event.unused or None)
    if event.reason is not None and event.may_have_been_billed:
        found[names.ATTEMPT_MAY_BE_BILLED] = True
    _put(found, names.ATTEMPT_SILENT, event.silent or None)
    if event.usage is not None:
        _put(found, names.GEN_AI_INPUT_TOKENS, event.usage["input_tokens"])
        _put(found, names.GEN_AI_OUTPUT_TOKENS, event.usage["output_tokens"])
        _put(found, names.COST_USD, event.usage["cost_usd"])
    if event.response_model is not None:
        found[names.GEN_AI_RESPONSE_MODEL] = safe_name(event.response_model)
    if event.response_id is not None:
        found[names.GEN_AI_RESPONSE_ID] = safe_name(event.response_id)
    if event.finish_reason is not None and _FINISH.fullmatch(event.finish_reason):
        found[names.GEN_AI_FINISH_REASONS] = [event.finish_reason.lower()]
    return found


_VERDICTS: Final[Mapping[str, str]] = {
    "throttled": "failure",
    "slow": "failure",
    "ignored": "neutral",
    "stale": "neutral",
}


def verdict(event: events.AttemptEnded) -> str:
    """Return how the breaker counted a request, in the words of the table of reasons."""
    return _VERDICTS.get(event.counted, event.counted)


def attempt_error(event: events.AttemptEnded) -> str | None:
    """Return the reason; the exception's type for a local bug; None for a success."""
    return event.error_type if event.reason is None else str(event.reason)


def _outcome(event: events.AttemptEnded) -> str:
    if event.reason is not None:
        return str(event.reason)
    return names.SUCCESS if event.error_type is None else names.OTHER_ERROR


@_once
def of_reject(event: events.ShortCircuited) -> Attributes:
    """Return the breaker's state and numbers when it rejected a request."""
    numbers = event.breaker
    found: Attributes = {
        names.CALL_ID: event.call_id,
        names.PROVIDER: event.provider,
        names.MODEL: event.model,
        names.CIRCUIT_BREAKER_NAME: f"{event.provider}:{event.model}",
        names.CIRCUIT_BREAKER_STATE: numbers.state.value,
        **breaker_numbers(numbers),
        names.ERROR_TYPE: str(Reason.CIRCUIT_OPEN),
    }
    _put(found, names.CIRCUIT_BREAKER_RETRY_AFTER, event.retry_after)
    if event.cause is not None:
        found[names.CIRCUIT_BREAKER_CAUSE] = str(event.cause)
    if numbers.open_for is not None and numbers.retry_after is not None:
        found[names.CIRCUIT_BREAKER_OPEN_FOR] = rounded(
            max(0.0, numbers.open_for - numbers.retry_after)
        )
    return found


def breaker_numbers(numbers: BreakerMetrics) -> Attributes:
    """Return the numbers for tuning thresholds. They are on spans, as Jaeger keeps no metrics."""
    return {
        names.CIRCUIT_BREAKER_FAILURE_RATE: rounded(numbers.failure_rate, 4),
        names.CIRCUIT_BREAKER_FAILURE_RATE_THRESHOLD: numbers.failure_rate_threshold,
        names.CIRCUIT_BREAKER_WINDOW_CALLS: numbers.window_calls,
        names.CIRCUIT_BREAKER_CONSECUTIVE: numbers.consecutive,
        names.CIRCUIT_BREAKER_FAILURE_THRESHOLD: numbers.failure_threshold,
    }


@lru_cache(maxsize=256)
def _of_route(
    provider: str, model: str, base_url: str | None, telemetry_name: str | None
) -> Attributes:
    """Return the attributes that all requests of a route share."""
    return {
        **route(provider, model, base_url, telemetry_name),
        names.GEN_AI_OUTPUT_TYPE: "image",
        names.PROVIDER: provider,
        names.MODEL: model,
        names.CIRCUIT_BREAKER_NAME: f"{provider}:{model}",
    }


@lru_cache(maxsize=256)
def route(
    provider: str, model: str, base_url: str | None, telemetry_name: str | None = None
) -> Mapping[str, str | int]:
    """Return provider, model and server by the GenAI conventions."""
    host, port = _server(base_url)
    found: dict[str, str | int] = {
        names.GEN_AI_OPERATION: names.GENERATE_CONTENT,
        names.GEN_AI_PROVIDER: _conventional_name(telemetry_name or provider, host),
        names.GEN_AI_REQUEST_MODEL: model,
    }
    if host is not None:
        found[names.SERVER_ADDRESS] = host
        if port is not None:
            found[names.SERVER_PORT] = port
    return found


def conventional_provider(event: events.AttemptStarted | events.RetryScheduled) -> str | int:
    """Return the provider's name by the GenAI conventions."""
    found = route(event.provider, "", event.base_url, event.telemetry_name)
    return found[names.GEN_AI_PROVIDER]


def _conventional_name(name: str, host: str | None) -> str:
    """Return the name by the conventions: a vendor's known host decides, then the provider."""
    if name in {"google", "gcp.gemini"}:
        return "gcp.vertex_ai" if "aiplatform" in (host or "") else "gcp.gemini"
    if name == "openai" and (host or "").endswith(".azure.com"):
        return "azure.ai.openai"
    return name


def _server(base_url: str | None) -> tuple[str | None, int | None]:
    """Return host and port only: the rest of an address may contain credentials."""
    try:
        parts = urlsplit(base_url or "")
        return parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None, None


def rounded(number: float, digits: int = 3) -> float:
    """Return ``round(number, digits)``; 0 is returned at once, as it is frequent."""
    return round(number, digits) if number else 0.0


def _put(found: Attributes, name: str, value: str | float | None) -> None:
    if value is not None:
        found[name] = rounded(value, 6) if isinstance(value, float) else value
