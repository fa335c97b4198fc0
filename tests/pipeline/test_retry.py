"""The retry decision: back-off, jitter, its limit, hints, reasons, deadline, queue and breaker."""

from __future__ import annotations

import math
from typing import Any

import pytest

from resilient_imagen.pipeline.deadline import Deadline
from resilient_imagen.pipeline.retry import FailedRequest, RetryPolicy
from resilient_imagen.reasons import Retry

NOW = 1000.0


def decide(*, chance: float = 0.0, max_retries: int = 3, **facts: Any) -> float | None:
    """Decide about a request that failed at once, with base delay 2, unless ``facts`` differ."""
    usual: dict[str, Any] = {
        "retry": Retry.ALWAYS,
        "hint": None,
        "attempt_number": 1,
        "max_attempts": max_retries + 1,
        "sent_at": NOW,
        "failed_at": NOW,
        "queue_s": 0.0,
        "first_failure_at": None,
        "has_alternative": False,
        "alternative_latency": None,
        "max_server_wait": 60.0,
        "deadline": Deadline(math.inf),
        "queue_wait": 0.0,
        "latency": None,
        "blocked_until": None,
    }
    return RetryPolicy(max_retries, 2.0, lambda: chance).decide(FailedRequest(**usual | facts))


def test_the_back_off_doubles_with_each_request() -> None:
    """The first three back-offs are 2, 4 and 8 seconds, and there is no fourth."""
    delays = [decide(attempt_number=number) for number in (1, 2, 3, 4)]
    assert delays == [2.0, 4.0, 8.0, None]


@pytest.mark.parametrize(("chance", "delay"), [(0.0, 2.0), (0.5, 1.7), (1.0, 1.4)])
def test_jitter_shortens_a_back_off_by_up_to_three_tenths(chance: float, delay: float) -> None:
    """Jitter shortens a back-off by up to 30 % and never lengthens it."""
    assert decide(chance=chance) == pytest.approx(delay)


def test_all_back_offs_and_slow_failures_together_stay_within_the_budget() -> None:
    """The budget of 14 seconds counts from the first failure and includes the expected duration
    of the next one.
    """
    assert decide(attempt_number=3, first_failure_at=NOW - 10) == 4.0
    assert decide(attempt_number=3, first_failure_at=NOW - 10, sent_at=NOW - 3) == 1.0
    assert decide(attempt_number=3, first_failure_at=NOW - 20) == 0.0
    assert decide(sent_at=NOW - 50) == 2.0, "the first failure has used nothing up"


def test_waiting_in_the_queue_counts_as_backing_off() -> None:
    """A retry that queued for 3 seconds shortens the next back-off by as much."""
    assert decide(attempt_number=2, first_failure_at=NOW - 1, queue_s=3.0) == 1.0
    assert decide(attempt_number=2, first_failure_at=NOW - 1, queue_s=5.0) == 0.0


def test_a_hint_replaces_the_back_off() -> None:
    """The hint is neither doubled nor jittered, and waited for up to the route's limit."""
    assert decide(hint=7.0, chance=1.0, attempt_number=2) == 7.0
    assert decide(hint=60.0) == 60.0
    assert decide(hint=60.1) is None


@pytest.mark.parametrize(("latency", "longest"), [(None, 14.0), (9.0, 9.0), (30.0, 14.0)])
def test_a_hint_longer_than_a_fallback_is_not_waited_for(
    latency: float | None, longest: float
) -> None:
    """The limit is the other route's latency, and never more than the sum of all back-offs."""
    alternative: dict[str, Any] = {"has_alternative": True, "alternative_latency": latency}
    assert decide(hint=longest, **alternative) == longest
    assert decide(hint=longest + 0.1, **alternative) is None


@pytest.mark.parametrize(
    ("retry", "first", "second", "first_with_alternative"),
    [
        (Retry.NEVER, False, False, False),
        (Retry.ONCE, True, False, True),
        (Retry.ONCE_IF_NO_OTHER_ROUTE, True, False, False),
        (Retry.ALWAYS, True, True, True),
    ],
)
def test_the_reason_limits_the_retries(
    retry: Retry, *, first: bool, second: bool, first_with_alternative: bool
) -> None:
    """Some reasons allow no retry, some one, and some one only if no other route can serve."""
    assert (decide(retry=retry) is not None) == first
    assert (decide(retry=retry, attempt_number=2) is not None) == second
    assert (decide(retry=retry, has_alternative=True) is not None) == first_with_alternative


def test_max_retries_zero_allows_no_retry() -> None:
    """With max_retries=0, a reason that allows one retry gets none."""
    assert decide(max_retries=0) is None
    assert decide(max_retries=0, retry=Retry.ONCE) is None


def test_a_retry_after_the_deadline_is_not_waited_for() -> None:
    """The back-off of 2 seconds has to end with useful time left."""
    assert decide(deadline=Deadline(NOW + 2.1)) == 2.0
    assert decide(deadline=Deadline(NOW + 2.0)) is None
    assert decide(deadline=Deadline(NOW + 2.1), latency=30.0) == 2.0, "it need not queue"


def test_a_retry_that_would_queue_needs_time_for_its_answer() -> None:
    """With 5 seconds in the queue and 10 for the answer, 15 seconds must be left."""
    queue: dict[str, Any] = {"queue_wait": 5.0, "latency": 10.0}
    assert decide(deadline=Deadline(NOW + 15.1), **queue) == 2.0
    assert decide(deadline=Deadline(NOW + 14.9), **queue) is None
    assert decide(deadline=Deadline(NOW + 2.1), queue_wait=1.9, latency=10.0) == 2.0
    assert decide(deadline=Deadline(NOW + 2.1), queue_wait=2.0005, latency=10.0) == 2.0
    assert decide(deadline=Deadline(NOW + 2.1), queue_wait=2.0015, latency=10.0) is None


def test_a_circuit_that_is_open_at_wake_up_makes_a_retry_useless() -> None:
    """A retry is not planned if the circuit is still open at its time."""
    assert decide(blocked_until=NOW + 1.9) == 2.0
    assert decide(blocked_until=NOW + 2.0) == 2.0
    assert decide(blocked_until=NOW + 2.1) is None


def test_later_routes_get_one_retry_and_wait_for_short_hints_only() -> None:
    """Routes after the first get one retry and wait for short hints only."""
    policy = RetryPolicy(3, 2.0, lambda: 0.0)
    assert [policy.max_attempts(is_first_route=first) for first in (True, False)] == [4, 2]
    waits = [policy.max_server_wait(60.0, is_first_route=first) for first in (True, False)]
    assert waits == [60.0, 14.0]
    assert RetryPolicy(0, 2.0, lambda: 0.0).max_attempts(is_first_route=False) == 1
