"""Reasons: every failure has one, and each reason has one policy for retry, fallback and breaker.

The words are a contract: errors, spans, log lines and settings use them. Each provider classifies
its vendor's responses; this module does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["POLICIES", "BreakerOutcome", "Reason", "ReasonPolicy", "Retry"]


class Reason(StrEnum):
    """The cause for which a call, or one request of it, did not deliver an image."""

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
    """How often a request may be retried on the same route."""

    NEVER = auto()
    ONCE = auto()
    ONCE_IF_NO_OTHER_ROUTE = auto()
    ALWAYS = auto()


class BreakerOutcome(StrEnum):
    """The outcome of one request for the circuit breaker."""

    SUCCESS = "success"
    """The service answered."""
    REFUSED = "refused"
    """The service refused this request: a success, but a probe does not vote, because a gateway may
    refuse requests while the service behind it is down."""
    FAILURE = "failure"
    """Counts towards both trip rules."""
    THROTTLED = "throttled"
    """With a hint: opens for exactly that long, then closes; a probe's hint is a lower limit of the
    next open period. Without a hint: counts as a consecutive failure, not in the failure rate."""
    TRIP = "trip"
    """Opens at once, because another request soon would fail too."""
    NEUTRAL = "neutral"
    """No vote: the outcome is not evidence about the service."""


@dataclass(frozen=True, slots=True)
class ReasonPolicy:
    """The consequences of a reason."""

    retry: Retry
    next_route: bool
    verdict: BreakerOutcome
    alert: bool = False
    """An operator has to act (a key, a permission, a model name): reported as an error event."""


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
