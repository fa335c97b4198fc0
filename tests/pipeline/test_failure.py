"""Classification of failed requests: reason, vote, error, and whether a request may be billed."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from resilient_imagen.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    ImageGenerationError,
    SaturatedError,
    provider_failure,
)
from resilient_imagen.pipeline.deadline import Deadline
from resilient_imagen.pipeline.failure import FailureClass, classify_failure
from resilient_imagen.reasons import BreakerOutcome, Reason

FAILURE, THROTTLED = BreakerOutcome.FAILURE, BreakerOutcome.THROTTLED
NEUTRAL, SUCCESS = BreakerOutcome.NEUTRAL, BreakerOutcome.SUCCESS


def classify(error: BaseException, **facts: Any) -> FailureClass:
    """Classify a request that was sent at 0 and ended at 60, unless ``facts`` differ."""
    usual: dict[str, Any] = {
        "started": 0.0,
        "now": 60.0,
        "cut_short": False,
        "timed_out": False,
        "call_deadline": Deadline(math.inf),
        "cut_short_counts_after": lambda: 30.0,
    }
    return classify_failure(error, **usual | facts)


def test_a_request_at_its_own_limit_is_a_timeout_and_a_failure() -> None:
    """The error is a ProviderTimeoutError without the timer's exception as context."""
    failure = classify(TimeoutError(), timed_out=True)
    assert (failure.reason, failure.vote, failure.cut_short) == (Reason.TIMEOUT, FAILURE, False)
    assert failure.provider_error is failure.error
    assert failure.error.__suppress_context__


@pytest.mark.parametrize(("ended", "vote"), [(29.9, NEUTRAL), (29.9995, THROTTLED)])
def test_a_request_cut_short_by_the_share_votes_if_it_ran_long(
    ended: float, vote: BreakerOutcome
) -> None:
    """A request that its share ends after 30 s votes as a failure."""
    failure = classify(TimeoutError(), timed_out=True, cut_short=True, now=ended)
    assert (failure.reason, failure.vote, failure.cut_short) == (Reason.TIMEOUT, vote, True)


@pytest.mark.parametrize(("ended", "vote"), [(29.0, NEUTRAL), (31.0, THROTTLED)])
def test_a_request_cut_short_by_the_deadline_votes_if_it_ran_long(
    ended: float, vote: BreakerOutcome
) -> None:
    """The cancellation reaches the call's timer; the breaker counts a timeout."""
    cancellation = asyncio.CancelledError()
    failure = classify(cancellation, now=ended, call_deadline=Deadline(ended))
    assert (failure.reason, failure.vote, failure.cut_short) == (Reason.DEADLINE, vote, True)
    assert failure.error is cancellation
    assert failure.provider_error is None
    assert (failure.trip_cause, failure.summary) == (Reason.TIMEOUT, "timed out")


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()])
@pytest.mark.parametrize("timed_out", [False, True])
def test_a_caller_that_leaves_casts_no_vote(error: BaseException, *, timed_out: bool) -> None:
    """A cancelled call casts no vote, even if its request's timer fired at the same moment."""
    failure = classify(error, timed_out=timed_out, call_deadline=Deadline(61.0))
    assert (failure.reason, failure.vote, failure.cut_short) == (Reason.CANCELLED, NEUTRAL, False)
    assert failure.error is error


def test_an_abandoned_request_is_cancelled_even_past_the_deadline() -> None:
    """Closing a call's coroutine is a cancellation, not the end of its deadline."""
    assert classify(GeneratorExit(), call_deadline=Deadline(59.0)).reason is Reason.CANCELLED


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
def test_a_local_bug_has_no_reason_and_no_vote(error: BaseException) -> None:
    """A local bug is raised unchanged, and no other route is asked."""
    failure = classify(error)
    assert failure == FailureClass(None, NEUTRAL, error)
    assert (failure.provider_error, failure.status, failure.summary) == (None, None, None)
    assert not failure.may_have_been_billed


@pytest.mark.parametrize(
    ("reason", "vote"),
    [
        (Reason.OVERLOADED, FAILURE),
        (Reason.RATE_LIMITED, THROTTLED),
        (Reason.UNAUTHENTICATED, BreakerOutcome.TRIP),
        (Reason.CONTENT_BLOCKED, BreakerOutcome.REFUSED),
    ],
)
def test_a_providers_error_votes_as_its_reason_says(reason: Reason, vote: BreakerOutcome) -> None:
    """A provider's error is passed on unchanged and votes by its reason."""
    error = provider_failure(reason, status=418)
    failure = classify(error)
    assert (failure.reason, failure.vote, failure.status) == (reason, vote, 418)
    assert failure.error is error
    assert failure.trip_cause is reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CircuitOpenError("theirs"), Reason.OVERLOADED),
        (SaturatedError("theirs"), Reason.OVERLOADED),
        (DeadlineExceededError("theirs"), Reason.TIMEOUT),
        (ImageGenerationError("theirs", reason=Reason.CANCELLED), Reason.OVERLOADED),
    ],
)
def test_a_nested_clients_circuit_error_is_an_outage(
    error: ImageGenerationError, reason: Reason
) -> None:
    """A provider that is itself an ImageClient has separate breakers, queues and deadlines."""
    failure = classify(error)
    assert (failure.reason, failure.vote) == (reason, FAILURE)
    assert failure.provider_error is not None
    assert failure.provider_error.vendor_message == "theirs"
    assert failure.provider_error.vendor_error == type(error).__name__


def test_a_nested_clients_error_keeps_its_details() -> None:
    """Only the reason of an error from a nested client is replaced."""
    usage: Any = {"provider": "x", "model": "m", "cost_usd": None, **used(30, 20)}
    error = ImageGenerationError(
        "theirs",
        reason=Reason.CANCELLED,
        retry_after=7.0,
        status=503,
        status_word="UNAVAILABLE",
        vendor_message="busy",
        vendor_error="ServerError",
        account_wide=True,
        usage=usage,
        never_sent=True,
    )
    failure = classify(error)
    made = failure.provider_error
    assert made is not None
    assert made is not error
    assert (made.reason, made.retry_after, made.status) == (Reason.OVERLOADED, 7.0, 503)
    assert (made.status_word, made.vendor_message) == ("UNAVAILABLE", "busy")
    assert (made.vendor_error, made.account_wide) == ("ServerError", True)
    assert (made.usage, made.not_sent) == (usage, True)
    assert failure.usage == usage
    assert made.__suppress_context__


def used(total: int | None, output: int | None, input_tokens: int | None = 10) -> dict[str, Any]:
    """Return a vendor's token counts."""
    return {"input_tokens": input_tokens, "output_tokens": output, "total_tokens": total}


@pytest.mark.parametrize(
    ("failure", "billed"),
    [
        (FailureClass(Reason.TIMEOUT, FAILURE, TimeoutError()), True),
        (FailureClass(Reason.OVERLOADED, FAILURE, TimeoutError()), False),
        (FailureClass(None, NEUTRAL, KeyError(), delivered=True), True),
        (FailureClass(Reason.NO_IMAGE, SUCCESS, KeyError(), usage=used(10, 0)), False),  # type: ignore[arg-type]
        (FailureClass(Reason.NO_IMAGE, SUCCESS, KeyError(), usage=used(30, 0)), True),  # type: ignore[arg-type]
        (FailureClass(Reason.OVERLOADED, FAILURE, KeyError(), usage=used(0, 5)), True),  # type: ignore[arg-type]
        (FailureClass(Reason.OVERLOADED, FAILURE, KeyError(), usage=used(10, 1)), True),  # type: ignore[arg-type]
        (FailureClass(Reason.NO_IMAGE, SUCCESS, KeyError(), usage=used(10, None)), False),  # type: ignore[arg-type]
        (FailureClass(Reason.NO_IMAGE, SUCCESS, KeyError(), usage=used(None, None, None)), False),  # type: ignore[arg-type]
        (FailureClass(Reason.NO_IMAGE, SUCCESS, KeyError(), usage=used(1, 0, None)), True),  # type: ignore[arg-type]
        (classify(provider_failure(Reason.SERVER_ERROR, status=399)), True),
        (classify(provider_failure(Reason.SERVER_ERROR, status=400)), False),
        (classify(provider_failure(Reason.SERVER_ERROR, status=499)), False),
        (classify(provider_failure(Reason.SERVER_ERROR, status=500)), True),
        (classify(provider_failure(Reason.SERVER_ERROR, status=404)), False),
        (classify(provider_failure(Reason.CONNECTION, never_sent=True)), False),
    ],
)
def test_a_failed_request_may_be_billed(failure: FailureClass, *, billed: bool) -> None:
    """Token counts decide if there are any, and otherwise the reason, the status and delivery."""
    assert failure.may_have_been_billed == billed


def test_after_delivery_the_service_has_answered() -> None:
    """After delivery, a caller that leaves votes for success; a bad image remains a failure."""
    usage: Any = used(30, 20)
    left = classify(asyncio.CancelledError()).after_delivery(usage)
    assert (left.reason, left.vote, left.delivered) == (Reason.CANCELLED, SUCCESS, True)
    broken = classify(provider_failure(Reason.INVALID_RESPONSE)).after_delivery(usage)
    assert (broken.vote, broken.usage) == (FAILURE, usage)
    assert broken.may_have_been_billed
