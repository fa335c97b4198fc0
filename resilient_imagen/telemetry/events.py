"""What happened, as frozen dataclasses: the vocabulary of spans, log lines and recordings.

The pipeline tells these to the sinks, in order, from the caller's own task. Times are the event
loop's, in seconds. Prompts and image data are reachable only through ``RequestStarted.request``,
for sinks that capture content because the operator asked for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker import BreakerMetrics, CircuitBreaker, Transition
    from resilient_imagen.errors import ImageGenerationError
    from resilient_imagen.providers.base import PromptHints
    from resilient_imagen.reasons import BreakerOutcome, Reason
    from resilient_imagen.request import ImageRequest
    from resilient_imagen.result import DroppedReference, ImageResult, Usage

__all__ = [
    "AttemptEnded",
    "AttemptStarted",
    "BreakerChanged",
    "CandidateDisagreed",
    "Event",
    "OperatorWarning",
    "ReferencesChanged",
    "RequestEnded",
    "RequestStarted",
    "RetryScheduled",
    "RouteFallback",
    "RouteRegistered",
    "ShortCircuited",
]


_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def _event(cls: type[_T]) -> type[_T]:
    """A frozen dataclass, filled at once: field by field takes ten times as long, in every call.

    Defaults are found on the class. What is missing is found by type checkers only.
    """

    def fill(self: _T, **fields: Any) -> None:
        self.__dict__.update(fields)

    made = dataclass(frozen=True, kw_only=True)(cls)
    made.__init__ = fill  # type: ignore[method-assign,assignment]
    return made


@_event
class Event:
    """Base of all events."""

    at: float
    """Loop time in seconds."""
    call_id: str = ""
    """The call it belongs to; empty for events of the client itself."""


@_event
class RequestStarted(Event):
    """A caller asked for an image."""

    request: ImageRequest = field(repr=False)
    provider: str
    """The primary's name."""
    model: str
    """The primary's model."""


@_event
class RouteRegistered(Event):
    """A route came into use, with its breaker."""

    provider: str
    model: str
    breaker: CircuitBreaker = field(repr=False)
    configured: bool
    """False when it is there only because a caller named its model."""


@_event
class ReferencesChanged(Event):
    """References were dropped or mended on the way."""

    dropped: tuple[DroppedReference, ...]
    notes: tuple[str, ...]


@_event
class AttemptStarted(Event):
    """A request is about to be sent: slot and permit are held."""

    provider: str
    model: str
    number: int
    """1-based, per route."""
    limit: int
    """How many this route may send for this call."""
    operation: str
    base_url: str | None
    admitted: str
    """The breaker's state that let it through: closed or half_open."""
    probe: bool
    queue_s: float
    """Seconds this request waited for its turn."""
    prompt_hints: PromptHints | None = None
    """What the provider adds to the caller's prompt; None when it does not say."""


@_event
class AttemptEnded(Event):
    """A request was answered, failed, timed out or was cancelled. Complete enough to replay."""

    provider: str
    model: str
    number: int
    reason: Reason | None
    """None when an image came, or when our own code failed (then ``error_type`` is set)."""
    status: int | None
    latency_s: float
    retry_after: float | None
    """Seconds the server asked to wait."""
    retry_in: float | None
    """Seconds until this route is asked again, or None when it is not."""
    counted: str
    """What the breaker made of ``vote``: success, failure, throttled, slow, ignored or stale."""
    transition: str | None
    """The breaker's change of state caused by it, such as ``closed_to_open``."""
    breaker: BreakerMetrics
    """The breaker's numbers after counting."""
    probe: bool
    cut_short: bool
    """True when the deadline or the reserve ended it before its own timeout."""
    usage: Usage | None
    may_have_been_billed: bool
    vote: BreakerOutcome
    """The vote that the breaker received for it."""
    operation: str = "generate"
    """generate or edit."""
    base_url: str | None = None
    limit: int = 1
    """How many requests this route may send for this call."""
    queue_s: float = 0.0
    """Seconds this request waited for its turn."""
    admitted: str = "closed"
    """The breaker's state that let it through: closed or half_open."""
    error_type: str | None = None
    """Name of the SDK's exception type, or of our own bug's."""
    vendor_message: str | None = None
    """Redacted and bounded."""
    response_model: str | None = None
    response_id: str | None = None
    finish_reason: str | None = None


@_event
class RetryScheduled(Event):
    """The same route will be asked again."""

    provider: str
    model: str
    number: int
    """Of the attempt that failed."""
    reason: Reason
    delay_s: float
    hinted: bool
    """True when the server said how long to wait."""
    base_url: str | None = None


@_event
class RouteFallback(Event):
    """A route was left for the next one."""

    from_route: str
    to_route: str
    cause: Reason


@_event
class ShortCircuited(Event):
    """A route was skipped by its breaker."""

    provider: str
    model: str
    breaker: BreakerMetrics
    retry_after: float | None
    cause: str | None
    """The reason that opened the breaker."""


@_event
class BreakerChanged(Event):
    """A breaker changed its state; in shadow mode, would have."""

    provider: str
    model: str
    transition: Transition
    next_route: str | None = None
    """The configured route that calls go to while this one is open; None if there is none."""


@_event
class CandidateDisagreed(Event):
    """Candidate settings would have done otherwise with a request than the live ones did."""

    provider: str
    model: str
    would: str
    """reject: the live breaker let it through; allow: the live breaker refused it."""
    reason: Reason | None
    """What became of a request that was sent; None for an image."""
    latency_s: float | None
    """Seconds it took; None when it was not sent."""


@_event
class RequestEnded(Event):
    """The call is over, one way or another."""

    operation: str = "generate"
    """generate or edit."""
    provider: str = ""
    """The primary's name."""
    outcome: str
    """success, error, cancelled or deadline."""
    latency_s: float
    attempts: int
    retries: int
    short_circuits: int
    queue_s: float
    backoff_s: float
    fallback_cause: Reason | None
    """Why the primary was left for the next route, if it was."""
    fallback_from: str | None
    """The route that was left, as provider:model."""
    result: ImageResult | None
    error: ImageGenerationError | None
    error_type: str | None = None
    """Name of the exception's type when it is none of ours."""
    served: AttemptEnded | None = None
    """The request that brought the image; there may be one although the call failed."""
    setup_s: float = 0.0
    """Seconds in which SDKs were loaded and built for the call."""


@_event
class OperatorWarning(Event):
    """Something an operator should know once: a missing key, a model name that was mapped."""

    code: str
    message: str
