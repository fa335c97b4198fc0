"""Every failure has one reason; this file says what each reason means for the call.

The words are the contract: errors carry them, spans and log lines use them, settings name them.
Which vendor answer gets which reason is decided beside each provider, never here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["POLICIES", "BreakerOutcome", "Reason", "ReasonPolicy", "Retry"]


class Reason(StrEnum):
    """Why a call, or one request of it, did not deliver an image."""

    OVERLOADED = "overloaded"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXHAUSTED = "quota_exhausted"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    MODEL_NOT_FOUND = "model_not_found"
    INVALID_RESPONSE = "invalid_response"
    NO_IMAGE = "no_image"
    CONTENT_BLOCKED = "content_blocked"
    INVALID_REQUEST = "invalid_request"
    CIRCUIT_OPEN = "circuit_open"
    SATURATED = "saturated"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"


class Retry(Enum):
    """How often the same route may be asked again after a reason."""

    NEVER = auto()
    ONCE = auto()
    ONCE_IF_NO_OTHER_ROUTE = auto()
    ALWAYS = auto()


class BreakerOutcome(StrEnum):
    """What the circuit breaker is told about one request."""

    SUCCESS = "success"
    """The service answered."""
    REFUSED = "refused"
    """The service refused this one request: a success, but no vote for a probe, since a refusal
    may come from a front door that still works while the service behind it does not."""
    FAILURE = "failure"
    """Counts towards both trip rules."""
    THROTTLED = "throttled"
    """With a hint: opens for exactly that long, then closes; a probe's hint is a lower limit of the
    next open period. Without: counts in a row, not in the rate."""
    TRIP = "trip"
    """Opens at once: asking again soon cannot help."""
    NEUTRAL = "neutral"
    """No vote: the request says nothing about the service."""


@dataclass(frozen=True, slots=True)
class ReasonPolicy:
    """What follows from a reason."""

    retry: Retry
    next_route: bool
    verdict: BreakerOutcome
    alert: bool = False
    """Somebody has to act (a key, a permission, a model name): reported as an error event."""


POLICIES: Final[Mapping[Reason, ReasonPolicy]] = {
    Reason.OVERLOADED: ReasonPolicy(Retry.ALWAYS, True, BreakerOutcome.FAILURE),
    Reason.RATE_LIMITED: ReasonPolicy(Retry.ALWAYS, True, BreakerOutcome.THROTTLED),
    Reason.QUOTA_EXHAUSTED: ReasonPolicy(Retry.NEVER, True, BreakerOutcome.TRIP),
    Reason.SERVER_ERROR: ReasonPolicy(Retry.ALWAYS, True, BreakerOutcome.FAILURE),
    Reason.TIMEOUT: ReasonPolicy(Retry.ONCE_IF_NO_OTHER_ROUTE, True, BreakerOutcome.FAILURE),
    Reason.CONNECTION: ReasonPolicy(Retry.ALWAYS, True, BreakerOutcome.FAILURE),
    Reason.UNAUTHENTICATED: ReasonPolicy(Retry.NEVER, True, BreakerOutcome.TRIP, alert=True),
    Reason.FORBIDDEN: ReasonPolicy(Retry.NEVER, True, BreakerOutcome.TRIP, alert=True),
    Reason.MODEL_NOT_FOUND: ReasonPolicy(Retry.NEVER, True, BreakerOutcome.TRIP, alert=True),
    Reason.INVALID_RESPONSE: ReasonPolicy(Retry.ONCE, True, BreakerOutcome.FAILURE),
    Reason.NO_IMAGE: ReasonPolicy(Retry.ONCE, True, BreakerOutcome.SUCCESS),
    Reason.CONTENT_BLOCKED: ReasonPolicy(Retry.NEVER, False, BreakerOutcome.REFUSED),
    Reason.INVALID_REQUEST: ReasonPolicy(Retry.NEVER, False, BreakerOutcome.REFUSED),
    Reason.CIRCUIT_OPEN: ReasonPolicy(Retry.NEVER, True, BreakerOutcome.NEUTRAL),
    Reason.SATURATED: ReasonPolicy(Retry.NEVER, True, BreakerOutcome.NEUTRAL),
    Reason.DEADLINE: ReasonPolicy(Retry.NEVER, False, BreakerOutcome.NEUTRAL),
    Reason.CANCELLED: ReasonPolicy(Retry.NEVER, False, BreakerOutcome.NEUTRAL),
}
