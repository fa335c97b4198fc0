"""`async with breaker.guard():` around anybody's coroutine."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from resilient_imagen.circuitbreaker.types import Rejection
from resilient_imagen.errors import CircuitOpenError, ImageGenerationError
from resilient_imagen.reasons import POLICIES, BreakerOutcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from resilient_imagen.circuitbreaker.breaker import CircuitBreaker
    from resilient_imagen.circuitbreaker.permit import Permit

__all__ = ["BreakerContext", "default_classifier"]

_logger = logging.getLogger("resilient_imagen")


def default_classifier(error: Exception) -> BreakerOutcome:
    """What an exception says about the service: the verdict of its reason; without one, failure."""
    if isinstance(error, ImageGenerationError):
        return POLICIES[error.reason].verdict
    return BreakerOutcome.FAILURE


class BreakerContext(AbstractAsyncContextManager["Permit"]):
    """One guarded call: asks on entry, settles on exit, suppresses and replaces nothing."""

    __slots__ = ("_breaker", "_classify", "_permit")

    def __init__(
        self, breaker: CircuitBreaker, classify: Callable[[Exception], BreakerOutcome]
    ) -> None:
        self._breaker = breaker
        self._classify = classify
        self._permit: Permit | None = None

    async def __aenter__(self) -> Permit:
        """Take a permit.

        Raises:
            CircuitOpenError: The breaker rejects.
            RuntimeError: It is guarding a call already.
        """
        if self._permit is not None:
            raise RuntimeError("a guard guards one call at a time; ask the gate for another")
        answer = self._breaker.acquire()
        if isinstance(answer, Rejection):
            raise CircuitOpenError(provider=answer.name, retry_after=answer.retry_after)
        self._permit = answer
        answer.begin()
        return answer

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Settle it."""
        permit, self._permit = self._permit, None
        if permit is None:
            return
        if error is None:
            permit.settle(BreakerOutcome.SUCCESS)
        elif isinstance(error, ImageGenerationError):
            permit.settle(
                self._judge(error),
                cause=error.reason,
                brief=error.summary,
                retry_after=error.retry_after,
            )
        elif isinstance(error, Exception):
            permit.settle(self._judge(error))
        else:
            permit.settle(BreakerOutcome.NEUTRAL)  # cancelled, or the program is ending

    def _judge(self, error: Exception) -> BreakerOutcome:
        try:
            return self._classify(error)
        except Exception as trouble:  # noqa: BLE001 - the call's own error has to reach the caller
            _logger.warning(
                "classify of breaker %s failed with %s", self._breaker.name, type(trouble).__name__
            )
            return BreakerOutcome.NEUTRAL
