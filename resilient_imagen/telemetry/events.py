"""Events of calls, as frozen dataclasses: the input of spans, metrics, log lines and recordings.

The pipeline builds an event where it happens and emits it from the caller's own task, in order.
Times are the event loop's, in seconds. Events carry immutable objects only, so they stay valid
after the call. Prompts and image data are reachable only through ``RequestStarted.request`` and
``RequestEnded.result``.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_imagen.circuitbreaker import (
        BreakerMetrics,
        CircuitBreaker,
        Rejection,
        Settlement,
        Transition,
    )
    from resilient_imagen.errors import ImageGenerationError
    from resilient_imagen.providers.base import PromptHints
    from resilient_imagen.reasons import BreakerOutcome, Reason
    from resilient_imagen.request import ImageRequest
    from resilient_imagen.result import Attempt, DroppedReference, ImageResult, Usage

__all__ = [
    "AccountChanged",
    "AttemptEnded",
    "AttemptStarted",
    "BreakerChanged",
    "CandidateDisagreed",
    "Event",
    "OperatorWarning",
    "OrderApplied",
    "OrderEnded",
    "ReferencesChanged",
    "RequestEnded",
    "RequestStarted",
    "RetryScheduled",
    "RouteFallback",
    "RouteRegistered",
    "SettingsReported",
    "ShortCircuited",
    "now",
]


_T = TypeVar("_T")


def now() -> float:
    """Return the running loop's time; without a loop, that of the clock which loops use."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:  # a client created outside a loop, or an abandoned call of a closed loop
        return time.monotonic()


def _of(path: str, *, init: Literal[False] = False) -> Any:
    """Define a field that is read from an object which the event carries, such as its attempt."""
    return field(init=init, default=property(attrgetter(path)))


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field, _of))
def _event(cls: type[_T]) -> type[_T]:
    """Make a frozen dataclass whose fields are set at once.

    One by one, as ``dataclass`` sets them, takes ten times as long, and every call makes events.
    Defaults are found on the class. Only type checkers notice a missing argument.
    """

    def fill(self: _T, **fields: Any) -> None:
        if "at" not in fields:
            fields["at"] = now()
        self.__dict__.update(fields)

    made = dataclass(frozen=True, kw_only=True)(cls)
    made.__init__ = fill  # type: ignore[method-assign,assignment]
    return made


@_event
class Event:
    """Base of all events."""

    at: float = field(default_factory=now)
    """Loop time in seconds: the present, unless it is given."""
    call_id: str = ""
    """The call it belongs to; empty for events of the client itself."""


@_event
class RequestStarted(Event):
    """A call started."""

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
    """False if the route exists only because a caller named its model."""


@_event
class ReferencesChanged(Event):
    """References were dropped or normalized."""

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
    """Maximum number of requests on this route for this call."""
    operation: str
    base_url: str | None
    telemetry_name: str | None
    """As in ``Endpoint``."""
    admitted: str
    """The breaker's state that admitted it: closed or half_open."""
    probe: bool
    queue_s: float
    """Seconds this request waited for its turn."""
    resolution: str
    time_limit_s: float
    """Seconds of the route's time limit."""
    prompt_hints: PromptHints | None = None
    """The provider's additions to the prompt; None if the provider does not report them."""
    overlap: str | None = None
    """The reason of an overlap with an earlier route's request: probe, slow or timeout."""


@_event
class AttemptEnded(Event):
    """A request was answered, failed, timed out or was cancelled. Complete enough to replay."""

    sent: AttemptStarted = field(repr=False)
    """The request as it was sent."""
    attempt: Attempt = field(repr=False)
    """Its record, as on errors."""
    settlement: Settlement = field(repr=False)
    """How the breaker counted it."""

    provider: str = _of("sent.provider")
    model: str = _of("sent.model")
    number: int = _of("sent.number")
    limit: int = _of("sent.limit")
    """Maximum number of requests on this route for this call."""
    operation: str = _of("sent.operation")
    """generate or edit."""
    base_url: str | None = _of("sent.base_url")
    telemetry_name: str | None = _of("sent.telemetry_name")
    admitted: str = _of("sent.admitted")
    """The breaker's state that admitted it: closed or half_open."""
    probe: bool = _of("sent.probe")
    queue_s: float = _of("sent.queue_s")
    """Seconds this request waited for its turn."""
    resolution: str = _of("sent.resolution")
    time_limit_s: float = _of("sent.time_limit_s")
    """Seconds of the route's time limit."""
    overlap: str | None = _of("sent.overlap")
    """The reason of an overlap with an earlier route's request: probe, slow or timeout."""
    reason: Reason | None = _of("attempt.reason")
    """None after a success, and after a local bug (then ``error_type`` is set)."""
    latency_s: float = _of("attempt.latency_s")
    retry_after: float | None = _of("attempt.retry_after")
    """Seconds the server asked to wait."""
    usage: Usage | None = _of("attempt.usage")
    may_have_been_billed: bool = _of("attempt.may_have_been_billed")
    silent: bool = _of("attempt.silent")
    """Whether a streaming request got no response, not even headers, in its first 10 seconds."""
    counted: str = _of("settlement.counted")
    """How the breaker counted ``vote``: success, failure, throttled, slow, ignored or stale."""
    transition: str | None = _of("settlement.transition")
    """The breaker's change of state caused by it, such as ``closed_to_open``."""
    breaker: BreakerMetrics = _of("settlement.metrics")
    """The breaker's numbers after counting."""

    status: int | None
    vote: BreakerOutcome
    """The vote that the breaker received for it."""
    retry_in: float | None = None
    """Seconds until this route is asked again, or None when it is not."""
    cut_short: bool = False
    """True when it was ended before its own time limit: by the deadline, by the reserve, or because
    another route delivered."""
    cancel_cause: str | None = None
    """The cause of its cancellation by the library: caller, delivered, displaced or round_ended;
    None if it was not cancelled, or not by the library."""
    delivered_by: str | None = None
    """The route, as provider:model, whose image came before this request ended."""
    unused: bool = False
    """True for an image that came after that of another route, or after the call."""
    error_type: str | None = None
    """Name of the exception type of the SDK, or of the local bug."""
    vendor_message: str | None = None
    """Redacted and bounded."""
    response_model: str | None = None
    response_id: str | None = None
    finish_reason: str | None = None


@_event
class RetryScheduled(Event):
    """A retry on the same route is scheduled."""

    sent: AttemptStarted = field(repr=False)
    """The request that failed, as it was sent."""

    provider: str = _of("sent.provider")
    model: str = _of("sent.model")
    number: int = _of("sent.number")
    """Number of the failed attempt."""
    base_url: str | None = _of("sent.base_url")
    telemetry_name: str | None = _of("sent.telemetry_name")

    reason: Reason
    delay_s: float
    hinted: bool
    """Whether the server determined the wait."""


@_event
class RouteFallback(Event):
    """A call falls back to the next route."""

    from_route: str
    to_route: str
    cause: Reason
    hedged: str | None = None
    """The reason of an overlap with the request in flight: probe, slow or timeout."""
    after_s: float | None = None
    """Seconds for which the request in flight had run; None if there was none."""


@_event
class AccountChanged(Event):
    """A call continues with another account of the same step, which is not a fallback."""

    from_route: str
    to_route: str
    cause: Reason
    """The reason of a failed request; circuit_open; or saturated if it can send sooner."""
    hedged: str | None = None
    """The reason of an overlap with the request in flight: probe, slow or timeout."""
    after_s: float | None = None
    """Seconds for which the request in flight had run; None if there was none."""


@_event
class ShortCircuited(Event):
    """A route was skipped by its breaker."""

    provider: str
    model: str
    rejection: Rejection = field(repr=False)
    """The breaker's answer."""

    breaker: BreakerMetrics = _of("rejection.metrics")
    retry_after: float | None = _of("rejection.retry_after")
    cause: str | None = _of("rejection.cause")
    """The reason that opened the breaker."""


@_event
class BreakerChanged(Event):
    """A breaker changed its state. In shadow mode, it would have done so."""

    transition: Transition
    next_route: str | None = None
    """The configured route that calls go to while this one is open; None if there is none."""

    @property
    def provider(self) -> str:
        """The first part of the breaker's name."""
        return self.transition.name.partition(":")[0]

    @property
    def model(self) -> str:
        """The rest of the breaker's name."""
        return self.transition.name.partition(":")[2]


@_event
class CandidateDisagreed(Event):
    """Candidate settings would have decided differently about a request than the live ones."""

    provider: str
    model: str
    would: str
    """The decision of the candidate, reject or allow; that of the live breaker is the opposite."""
    reason: Reason | None
    """The reason of a failed request; None for an image, and for a request that was not sent."""
    latency_s: float | None
    """Seconds it took; None when it was not sent."""


@_event
class RequestEnded(Event):
    """A call ended."""

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
    """The reason of the fallback, if there was one."""
    fallback_from: str | None
    """The route that was left, as provider:model."""
    result: ImageResult | None
    error: ImageGenerationError | None
    error_type: str | None = None
    """Name of the exception's type."""
    served: AttemptEnded | None = None
    """The request that delivered the image; it may exist even if the call failed."""
    setup_s: float = 0.0
    """Seconds in which SDKs were loaded and built for the call."""
    hedged: str | None = None
    """The reason of the first overlap of two requests: probe, slow or timeout."""
    orders: str | None = None
    """The operators' orders that were in force when the call started."""


@_event
class OrderApplied(Event):
    """An operator's order came into force."""

    order: str
    """The order as a command, such as ``breaker open google``."""
    by: str
    why: str
    lasts_s: float | None
    """Seconds until it ends; None if it acts once, or ends an earlier order."""


@_event
class OrderEnded(Event):
    """An operator's order has ended, and its effect is reverted."""

    order: str
    by: str


@_event
class SettingsReported(Event):
    """The settings in effect: with a client's first call, after each change, and once an hour."""

    client_id: str
    """Identifies the client among others whose events have the same destination."""
    variables: Mapping[str, str]
    """The settings that affect calls, by variable, without secrets."""


@_event
class OperatorWarning(Event):
    """A warning for operators, emitted once: a missing key, a replaced model name."""

    code: str
    message: str
