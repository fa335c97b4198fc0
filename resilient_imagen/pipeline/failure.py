"""Failures of requests: their reason, their vote for the breaker, whether they may be billed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    ImageGenerationError,
    SaturatedError,
    provider_failure,
)
from resilient_imagen.pipeline.deadline import Deadline
from resilient_imagen.pipeline.overlap import CancelCause
from resilient_imagen.reasons import POLICIES, BreakerOutcome, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.result import Usage

__all__ = ["FailureClass", "classify_failure"]

_POSSIBLY_BILLED: Final = frozenset(
    {
        Reason.TIMEOUT,
        Reason.CANCELLED,
        Reason.DEADLINE,
        Reason.CONNECTION,
        Reason.SERVER_ERROR,
        Reason.INVALID_RESPONSE,
        Reason.NO_IMAGE,
    }
)
"""Reasons for which a request without token counts may have been billed all the same.

The vendors count what they answer. Relays leave the counts out, and lose images that were paid for.
Overload is not among the reasons, as nothing was begun, nor are blocks, which are not charged.
"""

_CUT_SHORT: Final = frozenset({CancelCause.DELIVERED, CancelCause.DISPLACED})
"""Causes for which a request that ran long counts as failed."""

_ENDED_BY_CALLER: Final = frozenset({Reason.CANCELLED, Reason.DEADLINE})

_REASON_AS_PROVIDER: Final[Mapping[Reason, Reason]] = {
    Reason.CIRCUIT_OPEN: Reason.OVERLOADED,
    Reason.SATURATED: Reason.OVERLOADED,
    Reason.CANCELLED: Reason.OVERLOADED,
    Reason.DEADLINE: Reason.TIMEOUT,
}
"""Reasons of this pipeline, and what each one means in an error that a provider raised.

A provider that is a client itself may raise them about its own breakers, queues and deadline.
"""

_OWN_ERRORS: Final = (CircuitOpenError, SaturatedError, DeadlineExceededError)
"""Errors that mean something else to the pipeline when it has raised them itself."""


class FailureClass(NamedTuple):
    """What a request's failure means for the breaker, the bill and the caller."""

    reason: Reason | None
    """None for a local bug, which is raised as it is."""
    vote: BreakerOutcome
    """The vote for the circuit breaker."""
    error: BaseException
    """What the caller gets if nothing else is tried."""
    cut_short: bool = False
    """Whether the route's or the call's deadline ended it before its own time limit."""
    usage: Usage | None = None
    """What the vendor counted."""
    delivered: bool = False
    """Whether the image came, and what failed is local."""
    begun: bool = False
    """Whether a preview came, so that the vendor had begun to work."""

    @property
    def provider_error(self) -> ImageGenerationError | None:
        """Return the error if another request or route may make up for it, else None."""
        return self.error if isinstance(self.error, ImageGenerationError) else None

    @property
    def trip_cause(self) -> Reason | None:
        """Return why the breaker opened, if this request opens it."""
        return Reason.TIMEOUT if self.cut_short else self.reason

    @property
    def summary(self) -> str | None:
        """Return the trip cause in few words."""
        error = self.provider_error
        if error is not None:
            return error.summary
        return "timed out" if self.cut_short else None

    @property
    def status(self) -> int | None:
        """Return the HTTP status of the answer; None if there was none."""
        error = self.provider_error
        return None if error is None else error.status

    @property
    def may_have_been_billed(self) -> bool:
        """Return whether the vendor worked on it, by its token counts or possibly without any."""
        if self.delivered or self.begun:
            return True
        if self.usage is not None:
            made, total = self.usage["output_tokens"] or 0, self.usage["total_tokens"] or 0
            return made > 0 or total > (self.usage["input_tokens"] or 0)
        if self.reason not in _POSSIBLY_BILLED:
            return False
        error = self.provider_error
        if error is None:
            return True
        refused = error.status is not None and 400 <= error.status < 500  # noqa: PLR2004 - HTTP's codes
        return not (refused or error.not_sent)

    def after_delivery(self, usage: Usage) -> FailureClass:
        """Return the class of the same failure when the image had been delivered before it."""
        vote = BreakerOutcome.SUCCESS if self.reason in _ENDED_BY_CALLER else self.vote
        return self._replace(vote=vote, usage=usage, delivered=True)


def classify_failure(
    error: BaseException,
    *,
    started: float,
    now: float,
    cut_short: bool,
    timed_out: bool,
    call_deadline: Deadline,
    cut_short_counts_after: Callable[[], float],
    cancel_cause: CancelCause | None = None,
    past_limit: bool = False,
) -> FailureClass:
    """Return what a request that ended with ``error`` means.

    Args:
        error: What the provider raised, or what reached the request from outside.
        started: Loop time at which it was sent.
        now: Loop time at which it ended.
        cut_short: Whether the route's deadline was to end it before its own time limit.
        timed_out: Whether its own timer has fired.
        call_deadline: The deadline of the whole call.
        cut_short_counts_after: Returns the seconds after which a healthy request would have been
            answered.
        cancel_cause: Why the library cancelled the request; None if it did not.
        past_limit: Whether the request had exceeded its time limit, and was kept.
    """

    def cut_short_vote() -> BreakerOutcome:
        # A request that was cut short may have been about to succeed, so that it never counts in
        # the failure rate. It counts as a failure in a row if it ran longer than a healthy one.
        ran_long = Deadline.after(cut_short_counts_after(), started).has_passed(now)
        return BreakerOutcome.THROTTLED if ran_long else BreakerOutcome.NEUTRAL

    if timed_out and isinstance(error, Exception):
        timeout = provider_failure(Reason.TIMEOUT)
        timeout.__suppress_context__ = True
        vote = cut_short_vote() if cut_short else BreakerOutcome.FAILURE
        return FailureClass(Reason.TIMEOUT, vote, timeout, cut_short=cut_short)
    if isinstance(error, asyncio.CancelledError):
        out_of_time = call_deadline.has_passed(now)
        if past_limit:
            left = cancel_cause not in _CUT_SHORT and not out_of_time
            vote = BreakerOutcome.NEUTRAL if left else BreakerOutcome.FAILURE
            return FailureClass(Reason.TIMEOUT, vote, error)
        if out_of_time or cancel_cause in _CUT_SHORT:
            reason = Reason.DEADLINE if out_of_time else Reason.CANCELLED
            return FailureClass(reason, cut_short_vote(), error, cut_short=True)
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return FailureClass(Reason.CANCELLED, BreakerOutcome.NEUTRAL, error)
    if isinstance(error, ImageGenerationError):
        failure = _as_provider_failure(error)
        vote = POLICIES[failure.reason].verdict
        return FailureClass(failure.reason, vote, failure, usage=failure.usage)
    return FailureClass(None, BreakerOutcome.NEUTRAL, error)


def _as_provider_failure(error: ImageGenerationError) -> ImageGenerationError:
    """Return a provider's error, with a reason that cannot be mistaken for the pipeline's own."""
    if error.reason not in _REASON_AS_PROVIDER and not isinstance(error, _OWN_ERRORS):
        return error
    failure = provider_failure(
        _REASON_AS_PROVIDER.get(error.reason, error.reason),
        retry_after=error.retry_after,
        status=error.status,
        status_word=error.status_word,
        vendor_message=error.vendor_message or str(error),
        vendor_error=error.vendor_error or type(error).__name__,
        account_wide=error.account_wide,
        usage=error.usage,
        never_sent=error.not_sent,
    )
    failure.__suppress_context__ = True
    return failure
