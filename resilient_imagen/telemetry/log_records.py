"""The contents of log records about events. They are written in ``logs``.

Keys are the span attributes without ``imagegen.``: with that prefix, a pair is a tag by which
traces are searched.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from resilient_imagen.circuitbreaker import BreakerState
from resilient_imagen.effective_settings import as_text
from resilient_imagen.reasons import POLICIES, Reason
from resilient_imagen.telemetry import attributes, events, names
from resilient_imagen.telemetry.sanitize import safe, safe_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["LINES", "Line"]

Line: TypeAlias = "tuple[int, str, Callable[[], Mapping[str, Any]]]"
"""Level, name, and a function for the keys, which is called only if the level is enabled."""

_CHANGES: Final[Mapping[BreakerState, tuple[str, int]]] = {
    BreakerState.OPEN: (names.BREAKER_OPENED, logging.ERROR),
    BreakerState.FORCED_OPEN: (names.BREAKER_OPENED, logging.WARNING),
    BreakerState.HALF_OPEN: (names.BREAKER_HALF_OPENED, logging.INFO),
    BreakerState.CLOSED: (names.BREAKER_CLOSED, logging.INFO),
}


_MAX_LISTED: Final = 50
"""Dropped references that a record lists; its summary counts all of them."""


def _request_started(event: events.RequestStarted) -> Line:
    return (
        logging.DEBUG,
        names.REQUEST_STARTED,
        lambda: {
            **attributes.of_request_start(event),
            "model": event.model,
            "aspect_ratio": event.request.aspect_ratio,
            "resolution": event.request.resolution,
            "prompt_chars": len(event.request.prompt),
        },
    )


def _references_changed(event: events.ReferencesChanged) -> Line:
    return (
        logging.WARNING if event.dropped else logging.INFO,
        names.REFERENCES_CHANGED,
        lambda: {
            names.REFERENCES_DROPPED: [
                {"index": dropped["index"], "why": safe(dropped["why"])}
                for dropped in event.dropped[:_MAX_LISTED]
            ],
            names.REFERENCES_NOTES: [safe(note) for note in event.notes],
        },
    )


def _attempt_ended(event: events.AttemptEnded) -> Line | None:
    """Describe a failure, or an image that was not used. Others are part of their call's record."""
    if event.reason is None and event.error_type is None:
        if not event.unused:
            return None
        return logging.INFO, names.ATTEMPT_COMPLETED, lambda: _attempt(event)
    alert = event.reason is not None and POLICIES[event.reason].alert
    return (
        logging.ERROR if alert else logging.WARNING,
        names.ATTEMPT_FAILED,
        lambda: _attempt(event),
    )


def _attempt(event: events.AttemptEnded) -> dict[str, Any]:
    found: dict[str, Any] = {
        "route": f"{event.provider}:{event.model}",
        "latency_s": round(event.latency_s, 6),
        "reason": None if event.reason is None else str(event.reason),
        **attributes.of_attempt(event),
        **attributes.of_attempt_end(event),
    }
    if event.error_type is not None:
        found[names.EXCEPTION_TYPE] = event.error_type
    if event.vendor_message is not None:
        found[names.EXCEPTION_MESSAGE] = safe(event.vendor_message)
    return found


def _retry_scheduled(event: events.RetryScheduled) -> Line:
    return (
        logging.INFO,
        names.RETRY_SCHEDULED,
        lambda: {
            names.PROVIDER: event.provider,
            names.MODEL: event.model,
            names.ATTEMPT_NUMBER: event.number,
            "reason": str(event.reason),
            names.RETRY_BACKOFF: round(event.delay_s, 3),
            names.RETRY_HINTED: event.hinted,
        },
    )


def _route_fallback(event: events.RouteFallback) -> Line:
    def details() -> dict[str, Any]:
        found: dict[str, Any] = {
            names.FALLBACK_FROM: event.from_route,
            names.FALLBACK_TO: event.to_route,
            names.FALLBACK_CAUSE: str(event.cause),
        }
        if event.hedged is not None:
            found[names.HEDGED] = event.hedged
        if event.after_s is not None:
            found["after_s"] = round(event.after_s, 3)
        return found

    return logging.WARNING, names.FALLBACK, details


def _account_changed(event: events.AccountChanged) -> Line:
    def details() -> dict[str, Any]:
        found: dict[str, Any] = {
            "account.from": event.from_route,
            "account.to": event.to_route,
            "reason": str(event.cause),
        }
        if event.hedged is not None:
            found[names.HEDGED] = event.hedged
        if event.after_s is not None:
            found["after_s"] = round(event.after_s, 3)
        return found

    # Every second call of a busy step does this because the other queue is shorter.
    level = logging.DEBUG if event.cause is Reason.SATURATED else logging.INFO
    return level, names.ACCOUNT_CHANGED, details


def _short_circuited(event: events.ShortCircuited) -> Line:
    return logging.INFO, names.BREAKER_REJECTED, lambda: attributes.of_reject(event)


def _breaker_changed(event: events.BreakerChanged) -> Line:
    change = event.transition
    name, level = _CHANGES[change.to_state]
    if change.shadow:
        level = min(level, logging.INFO)  # it has no effect

    def details() -> dict[str, Any]:
        found: dict[str, Any] = {
            names.CIRCUIT_BREAKER_NAME: change.name,
            names.PROVIDER: event.provider,
            names.MODEL: event.model,
            names.CIRCUIT_BREAKER_FROM: change.from_state.value,
            names.CIRCUIT_BREAKER_TO: change.to_state.value,
            **attributes.breaker_numbers(change.metrics),
        }
        if change.cause is not None:
            found[names.CIRCUIT_BREAKER_CAUSE] = str(change.cause)
        if change.retry_after is not None:
            found[names.CIRCUIT_BREAKER_RETRY_AFTER] = round(change.retry_after, 3)
        if change.shadow:
            found[names.CIRCUIT_BREAKER_SHADOW] = True
        return found

    return level, name, details


def _shadow_differed(event: events.CandidateDisagreed) -> Line:
    return (
        logging.INFO,
        names.SHADOW_DIFFERED,
        lambda: {
            names.CIRCUIT_BREAKER_NAME: f"{event.provider}:{event.model}",
            names.SHADOW_WOULD: event.would,
            "reason": None if event.reason is None else str(event.reason),
            "latency_s": event.latency_s,
        },
    )


def _request_ended(event: events.RequestEnded) -> Line:
    failed = event.outcome != names.SUCCESS
    level = logging.ERROR if failed and event.outcome != "cancelled" else logging.INFO

    def details() -> dict[str, Any]:
        found: dict[str, Any] = {
            # First, so that a truncated record lacks the latency of the call in any case.
            **(_served(event.served, event.at) if event.served is not None else {}),
            names.OPERATION: event.operation,
            names.PROVIDER_PRIMARY: event.provider,
            "latency_s": round(event.latency_s, 6),
            **attributes.of_request_end(event),
        }
        if event.error_type is not None:
            found[names.EXCEPTION_TYPE] = event.error_type
        if event.error is not None:
            found[names.EXCEPTION_MESSAGE] = safe(event.error)
        return found

    return level, names.REQUEST_FAILED if failed else names.REQUEST_COMPLETED, details


def _served(event: events.AttemptEnded, now: float) -> dict[str, Any]:
    """Describe the request that delivered the image, as a replay needs it."""
    found: dict[str, Any] = {
        "attempt.latency_s": round(event.latency_s, 6),
        "attempt.ago_s": round(now - event.at, 6),
        "attempt.queue_s": attributes.rounded(event.queue_s),
        names.ATTEMPT_NUMBER: event.number,
        names.ATTEMPT_RESOLUTION: event.resolution,
        names.ATTEMPT_TIME_LIMIT: float(event.time_limit_s),
        names.CIRCUIT_BREAKER_NAME: f"{event.provider}:{event.model}",
        names.CIRCUIT_BREAKER_STATE: event.admitted,
        names.CIRCUIT_BREAKER_COUNTED: attributes.verdict(event),
        names.CIRCUIT_BREAKER_FAILURE_RATE: attributes.rounded(event.breaker.failure_rate, 4),
        names.CIRCUIT_BREAKER_WINDOW_CALLS: event.breaker.window_calls,
    }
    if event.counted != found[names.CIRCUIT_BREAKER_COUNTED]:
        found[names.CIRCUIT_BREAKER_COUNTED_AS] = event.counted
    if event.transition is not None:
        found[names.CIRCUIT_BREAKER_TRANSITION] = event.transition
    if event.overlap is not None:
        found[names.ATTEMPT_OVERLAP] = event.overlap
    for name, key in _USED:
        used = None if event.usage is None else event.usage[key]
        if used is not None:
            found[name] = used
    if event.response_id is not None:  # vendors' support requests it
        found[names.GEN_AI_RESPONSE_ID] = safe_name(event.response_id)
    return found


_USED: Final[tuple[tuple[str, Literal["input_tokens", "output_tokens", "cost_usd"]], ...]] = (
    (names.GEN_AI_INPUT_TOKENS, "input_tokens"),
    (names.GEN_AI_OUTPUT_TOKENS, "output_tokens"),
    (names.COST_USD, "cost_usd"),
)


def _order_applied(event: events.OrderApplied) -> Line:
    def details() -> dict[str, Any]:
        found: dict[str, Any] = {
            names.CONTROL_ORDER: safe(event.order),
            names.CONTROL_BY: safe(event.by),
        }
        if event.why:
            found[names.CONTROL_WHY] = safe(event.why)
        if event.lasts_s is not None:
            found[names.CONTROL_LASTS] = round(event.lasts_s, 3)
        return found

    return logging.WARNING, names.CONTROL_APPLIED, details


def _order_ended(event: events.OrderEnded) -> Line:
    return (
        logging.WARNING,
        names.CONTROL_ENDED,
        lambda: {names.CONTROL_ORDER: safe(event.order), names.CONTROL_BY: safe(event.by)},
    )


def _settings_reported(event: events.SettingsReported) -> Line:
    return (
        logging.INFO,
        names.SETTINGS_REPORTED,
        lambda: {names.CLIENT_ID: event.client_id, names.SETTINGS: as_text(event.variables)},
    )


def _warned(event: events.OperatorWarning) -> Line:
    return (
        logging.WARNING,
        names.WARNING,
        lambda: {"code": event.code, "warning": safe(event.message)},
    )


LINES: Final[Mapping[type[events.Event], Callable[[Any], Line | None]]] = {
    events.RequestStarted: _request_started,
    events.ReferencesChanged: _references_changed,
    events.AttemptEnded: _attempt_ended,
    events.RetryScheduled: _retry_scheduled,
    events.RouteFallback: _route_fallback,
    events.AccountChanged: _account_changed,
    events.ShortCircuited: _short_circuited,
    events.BreakerChanged: _breaker_changed,
    events.CandidateDisagreed: _shadow_differed,
    events.RequestEnded: _request_ended,
    events.OrderApplied: _order_applied,
    events.OrderEnded: _order_ended,
    events.SettingsReported: _settings_reported,
    events.OperatorWarning: _warned,
}
