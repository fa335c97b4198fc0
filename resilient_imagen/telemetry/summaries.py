"""One sentence about each event, for people: the ``summary`` of log records.

Sentences consist of reasons, names, numbers and sanitized messages; never of a prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.circuitbreaker import BreakerState
from resilient_imagen.effective_settings import as_text, changed_from_defaults
from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry import events
from resilient_imagen.telemetry.sanitize import safe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.circuitbreaker import BreakerMetrics, Transition

__all__ = ["summary"]

_ORDINALS: Final = (
    "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
)  # fmt: skip
_MAX_REFERENCES: Final = 3
"""Dropped references that a sentence describes; it counts the others."""
_PRECISE_BELOW: Final = 10
"""Seconds below which tenths are shown."""


def summary(event: events.Event) -> str:
    """Return the sentence about ``event``; empty for events without a log record."""
    make = _SENTENCES.get(type(event))
    return "" if make is None else make(event)


def _request_started(event: events.RequestStarted) -> str:
    request = event.request
    return (
        f"{request.operation} an image, {request.aspect_ratio} at {request.resolution}: "
        f"{event.provider} is first"
    )


def _references_changed(event: events.ReferencesChanged) -> str:
    if not event.dropped:
        return safe("; ".join(event.notes))
    described = [f"reference {each['index']} {each['why']}" for each in event.dropped]
    rest = len(described) - _MAX_REFERENCES
    more = [f"and {rest} more"] if rest > 0 else []
    return safe(
        f"{_counted(len(described), 'reference')} dropped: "
        + "; ".join([*described[:_MAX_REFERENCES], *more])
    )


def _attempt_ended(event: events.AttemptEnded) -> str:
    if event.unused:
        return _unused_image(event)
    took = f"after {_seconds(event.latency_s)}"
    if event.cancel_cause in _CANCELLED:
        return _cancelled_request(event, took)
    if event.reason is None:
        failure = f"request to {event.provider} ended by {event.error_type} {took}"
    elif event.cut_short:
        failure = f"{event.provider} cut short {took} by the call's deadline"
    else:
        failure = f"{_failure(event.provider, event.reason, event.status)} {took}"
        if event.silent:
            failure += " (silent from the start)"
        if event.reason is Reason.CONNECTION and event.vendor_message is not None:
            failure += f" ({safe(event.vendor_message)})"  # the system's or TLS library's words
    if event.counted in _COUNTED_IN_A_ROW:
        failure += _in_a_row(event.breaker)
    if event.transition in {"closed_to_open", "half_open_to_open"}:
        return f"{failure}: {_opened(event.breaker.retry_after)}"
    if event.retry_in is not None:
        return f"{failure}: retry in {_seconds(event.retry_in)}"
    return failure


def _unused_image(event: events.AttemptEnded) -> str:
    """Describe an image that arrived too late for its call."""
    who, why = event.provider, "the call had ended"
    if event.delivered_by is not None:
        who, first = _distinct(f"{event.provider}:{event.model}", event.delivered_by)
        why = f"{first} delivered first"
    closed = "; circuit closed" if event.transition == "half_open_to_closed" else ""
    return f"image from {who} after {_seconds(event.latency_s)}, not used: {why}{closed}"


def _cancelled_request(event: events.AttemptEnded, took: str) -> str:
    """Describe a request that the library cancelled although its caller had not left."""
    who, why = event.provider, _CANCELLED[event.cancel_cause or ""]
    if event.cancel_cause == "delivered" and event.delivered_by is not None:
        who, first = _distinct(f"{event.provider}:{event.model}", event.delivered_by)
        why = f"{first} delivered first"
    late = f", past its limit of {_seconds(event.time_limit_s)}"
    found = f"{who} cancelled {took}{late if event.reason is Reason.TIMEOUT else ''}: {why}"
    if event.may_have_been_billed:
        found += "; may have been billed"
    if event.transition in {"closed_to_open", "half_open_to_open"}:
        found += f"; {_opened(event.breaker.retry_after)}"
    return found


_CANCELLED: Final[Mapping[str, str]] = {
    "delivered": "another route delivered first",
    "displaced": "a newer request took its place",
    "round_ended": "the circuit no longer needs this probe",
}
"""Phrases for the causes of a cancellation."""

_COUNTED_IN_A_ROW: Final = frozenset({"failure", "throttled", "slow"})


def _retry_scheduled(event: events.RetryScheduled) -> str:
    hint = ", as the server asked" if event.hinted else ""
    return f"{_failure(event.provider, event.reason)}: retry in {_seconds(event.delay_s)}{hint}"


def _route_fallback(event: events.RouteFallback | events.AccountChanged) -> str:
    left, following = _distinct(event.from_route, event.to_route)
    if event.hedged is None or event.after_s is None:
        return f"{_failure(left, event.cause)}: {following} is next"
    if event.hedged == "timeout":
        return f"{left} past its limit of {_seconds(event.after_s)}: kept beside {following}"
    slow = "probe slow" if event.hedged == "probe" else "slow"
    return f"{left} {slow} after {_seconds(event.after_s)}: {following} asked beside it"


def _account_changed(event: events.AccountChanged) -> str:
    left, following = _distinct(event.from_route, event.to_route)
    if event.cause is Reason.SATURATED and event.hedged is None:
        return f"{following} can send sooner than {left}"
    return _route_fallback(event)


def _short_circuited(event: events.ShortCircuited) -> str:
    state, wait = event.breaker.state, event.retry_after
    if state is BreakerState.FORCED_OPEN:
        return f"{event.provider} skipped: circuit forced open by an operator"
    after = "" if event.cause is None else f" after {_words(event.cause)}"
    if state is BreakerState.HALF_OPEN:
        return f"{event.provider} skipped: a probe is in flight{after}"
    until = "" if wait is None else f", next probe in {_seconds(wait)}"
    return f"{event.provider} skipped: circuit open{after}{until}"


def _breaker_changed(event: events.BreakerChanged) -> str:
    change, who = event.transition, event.provider
    if change.to_state in {BreakerState.OPEN, BreakerState.FORCED_OPEN}:
        if change.shadow:
            return f"without effect (shadow): {_why_opened(who, change)}"
        if event.next_route is None:
            return f"{_why_opened(who, change)}, no other route serves"
        who, following = _distinct(change.name, event.next_route)
        return f"{_why_opened(who, change)}, {following} serves"
    if change.to_state is BreakerState.HALF_OPEN:
        found = f"{who}: circuit half-open, the next request is a probe"
    elif change.from_state is BreakerState.FORCED_OPEN:
        found = f"{who}: circuit no longer forced open"
    else:
        found = f"{who} serves again: circuit closed"
    return f"without effect (shadow): {found}" if change.shadow else found


def _why_opened(who: str, change: Transition) -> str:
    numbers = change.metrics
    if change.to_state is BreakerState.FORCED_OPEN:
        return f"{who}: circuit forced open by an operator"
    opened = _opened(change.retry_after)
    if change.cause is None:
        return f"{who}: {opened}"
    first = (change.summary or "").partition(" ")[0]
    failure = _failure(who, change.cause, int(first) if first.isdecimal() else None)
    if change.from_state is BreakerState.HALF_OPEN:
        return f"{failure}, a failed probe: {opened}"
    if numbers.consecutive >= numbers.failure_threshold:
        return f"{failure}{_in_a_row(numbers)}: {opened}"
    if numbers.failure_rate >= numbers.failure_rate_threshold:
        failed = round(numbers.failure_rate * numbers.window_calls)
        if failed > 1:
            return f"{failure}, {failed} of {numbers.window_calls} requests failed: {opened}"
    return f"{failure}: {opened}"


def _shadow_differed(event: events.CandidateDisagreed) -> str:
    if event.would == "allow":
        return f"candidate settings would have sent a request to {event.provider}, which was open"
    became = "brought an image" if event.reason is None else f"ended as {_words(event.reason)}"
    return f"candidate settings would have refused a request to {event.provider} that {became}"


def _request_ended(event: events.RequestEnded) -> str:
    spent = f"{_seconds(event.latency_s)} and {_counted(event.attempts, 'request')}"
    if event.result is not None:
        served = event.result.provider
        if event.fallback_cause is None or event.fallback_from is None:
            beside = "" if event.hedged is None else ", two of them at a time"
            return f"image from {served} after {spent}{beside}"
        left, served = _distinct(event.fallback_from, f"{served}:{event.result.model}")
        why = _LEFT.get((event.hedged, event.fallback_cause)) or _words(event.fallback_cause)
        return f"image from {served} after {spent}; {left} was left ({why})"
    if event.outcome == "cancelled":
        return f"cancelled by the caller after {spent}"
    error = event.error_type if event.error is None else safe(event.error)
    return f"no image after {spent}: {error}"


_LEFT: Final[Mapping[tuple[str | None, str], str]] = {
    ("probe", Reason.CIRCUIT_OPEN): "probe slow",
    ("slow", Reason.TIMEOUT): "slow",
    ("timeout", Reason.TIMEOUT): "past its limit",
}
"""Phrases for a fallback beside a request in flight, by overlap and cause."""


def _order_applied(event: events.OrderApplied) -> str:
    lasts = "" if event.lasts_s is None else f" for {_seconds(event.lasts_s)}"
    why = f": {event.why}" if event.why else ""
    return safe(f"{event.by} ordered {event.order}{lasts}{why}")


def _order_ended(event: events.OrderEnded) -> str:
    return safe(f"{event.order}, ordered by {event.by}, has ended")


def _settings_reported(event: events.SettingsReported) -> str:
    changed = changed_from_defaults(event.variables)
    return f"settings in effect: {as_text(changed) or 'the defaults'}"


def _warned(event: events.OperatorWarning) -> str:
    return safe(event.message)


_SENTENCES: Final[Mapping[type[events.Event], Callable[[Any], str]]] = {
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


# -- parts of sentences ---------------------------------------------------------------------------


def _failure(who: str, reason: str, status: int | None = None) -> str:
    """``google overloaded (503)``."""
    return f"{who} {_words(reason)}" + ("" if status is None else f" ({status})")


def _words(reason: str) -> str:
    """Return the reason as it reads in a sentence."""
    return "connection failure" if reason == Reason.CONNECTION else safe(reason.replace("_", " "))


def _in_a_row(numbers: BreakerMetrics) -> str:
    count = numbers.consecutive
    if count < 2:  # noqa: PLR2004 - a single failure
        return ""
    spelled = _ORDINALS[count - 2] if count - 2 < len(_ORDINALS) else f"number {count}"
    return f", {spelled} in a row"


def _opened(retry_after: float | None) -> str:
    return "circuit open" + ("" if retry_after is None else f" for {_seconds(retry_after)}")


def _distinct(route: str, other: str) -> tuple[str, str]:
    """Return both routes by their providers' names, or in full if those are equal."""
    first, second = route.partition(":")[0], other.partition(":")[0]
    return (route, other) if first == second else (first, second)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < _PRECISE_BELOW else f"{seconds:.0f} s"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
