"""Retries: whether, and after how many seconds, the same route gets another request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.pipeline.deadline import CLOCK_TOLERANCE
from resilient_imagen.reasons import Retry

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.pipeline.deadline import Deadline

__all__ = ["FailedRequest", "RetryPolicy"]

_JITTER: Final = 0.3
"""Share of a back-off by which chance shortens it at most."""


class FailedRequest(NamedTuple):
    """A failed request, and all that the decision about a retry depends on; in loop time."""

    retry: Retry
    """How often the reason of the failure allows another request."""
    hint: float | None
    """Seconds after which the server asks for another request, or None."""
    attempt_number: int
    """Requests that the call has sent to the route, the failed one included."""
    max_attempts: int
    """Requests that the call may send to the route."""
    sent_at: float
    failed_at: float
    queue_s: float
    """Seconds that the failed request waited in the queue."""
    first_failure_at: float | None
    """When the first failure that called for a back-off happened; None if it is this one."""
    has_alternative: bool
    """Whether another route can serve the call now, and the reason allows to fall back."""
    alternative_latency: float | None
    """Usual latency of that route in seconds; None if it is unknown."""
    max_server_wait: float
    """Longest hint in seconds that is waited for if there is no alternative."""
    deadline: Deadline
    """When the call must be done with the route."""
    queue_wait: float
    """Seconds until the queue would let the next request pass."""
    latency: float | None
    """Measured latency of the route in seconds; None if it is unknown."""
    blocked_until: float | None
    """When the route's circuit breaker lets calls through again; None if it does so now."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The number of requests to a route, and the seconds between them."""

    max_retries: int
    """Retries of a call on its first route."""
    base_delay: float
    """Seconds of the first back-off, which is doubled with each retry."""
    random: Callable[[], float]
    """Chance for jitter, from 0 to 1."""

    @property
    def total_backoff_budget(self) -> float:
        """Return the seconds that a call backs off on its first route at most."""
        return self.base_delay * (2.0**self.max_retries - 1)

    def max_attempts(self, *, is_first_route: bool) -> int:
        """Return how many requests a call may send to a route: later routes get one retry."""
        return 1 + (self.max_retries if is_first_route else min(1, self.max_retries))

    def max_server_wait(self, timeout: float, *, is_first_route: bool) -> float:
        """Return the longest hint, in seconds, that is waited for if no other route can serve."""
        return timeout if is_first_route else min(timeout, self.total_backoff_budget)

    def decide(self, failed: FailedRequest) -> float | None:
        """Return the seconds until the route gets another request, or None to leave it."""
        if not _allows_retry(failed):
            return None
        if failed.hint is None:
            delay = self._backoff_delay(failed)
        elif failed.hint <= self._max_hint(failed):
            delay = failed.hint
        else:
            return None
        return delay if _would_be_useful(failed, delay) else None

    def _backoff_delay(self, failed: FailedRequest) -> float:
        """Return the back-off: doubled each time, jittered, its sum limited for slow failures."""
        delay = self.base_delay * 2.0 ** (failed.attempt_number - 1)
        delay *= 1 - _JITTER * self.random()
        if failed.first_failure_at is None:
            return delay
        # A retry that was held up in the queue has waited already. The next failure may take as
        # long as this one did, so that the route would be left too late.
        now, latest_failure_s = failed.failed_at, failed.failed_at - failed.sent_at
        left = failed.first_failure_at + self.total_backoff_budget - now - latest_failure_s
        return max(0.0, min(delay - failed.queue_s, left))

    def _max_hint(self, failed: FailedRequest) -> float:
        """Return the longest hint, in seconds, that is waited for.

        With an alternative this is no longer than that route usually takes. Until its latency is
        known, it is no longer than all back-offs together.
        """
        if not failed.has_alternative:
            return failed.max_server_wait
        budget, usual = self.total_backoff_budget, failed.alternative_latency
        return budget if usual is None else min(budget, usual)


def _allows_retry(failed: FailedRequest) -> bool:
    """Return whether the reason and the number of requests so far allow another request."""
    if failed.retry is Retry.NEVER:
        return False
    if failed.retry is Retry.ONCE_IF_NO_OTHER_ROUTE and failed.has_alternative:
        return False
    at_most = failed.max_attempts if failed.retry is Retry.ALWAYS else min(failed.max_attempts, 2)
    return failed.attempt_number < at_most


def _would_be_useful(failed: FailedRequest, delay: float) -> bool:
    """Return whether a retry after ``delay`` seconds can be sent, and answered, in time."""
    wakes_at = failed.failed_at + delay
    if failed.blocked_until is not None and failed.blocked_until > wakes_at:
        return False
    # A request that has to queue is turned away if less than the route's latency is left then.
    queues = failed.queue_wait > delay + CLOCK_TOLERANCE
    sent_at = failed.failed_at + max(delay, failed.queue_wait)
    return failed.deadline.is_worth_starting(sent_at, failed.latency if queues else None)
