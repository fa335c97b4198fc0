"""The context manager of `async with breaker.protect():`."""

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

    from resilient_imagen.circuitbreaker.permit import Permit

__all__ = ["BreakerContext", "default_classifier"]

_logger = logging.getLogger("resilient_imagen")


def default_classifier(error: Exception) -> BreakerOutcome:
    """Return the verdict of the error's reason; an error without a reason is a failure."""
    if isinstance(error, ImageGenerationError):
        return POLICIES[error.reason].verdict
    return BreakerOutcome.FAILURE


class BreakerContext(AbstractAsyncContextManager["Permit"]):
    """One protected call: acquires a permit on entry and settles it on exit.

    It neither suppresses nor replaces exceptions.

    Args:
        name: The breaker's name, for log records.
        acquire: Returns a permit or a rejection.
        classify: Returns the verdict for an exception of the call.
    """

    __slots__ = ("_acquire", "_classify", "_name", "_permit")

    def __init__(
        self,
        name: str,
        acquire: Callable[[], Permit | Rejection],
        classify: Callable[[Exception], BreakerOutcome],
    ) -> None:
        self._name = name
        self._acquire = acquire
        self._classify = classify
        self._permit: Permit | None = None

    async def __aenter__(self) -> Permit:
        """Acquire a permit.

        Raises:
            CircuitOpenError: The breaker rejects the call.
            RuntimeError: This object already protects a call.
        """
        if self._permit is not None:
            raise RuntimeError(
                "a context protects one call at a time; get another one from protect()"
            )
        answer = self._acquire()
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
        """Settle the permit with the outcome of the call."""
        permit, self._permit = self._permit, None
        if permit is None:
            return
        if error is None:
            permit.settle(BreakerOutcome.SUCCESS)
        elif isinstance(error, ImageGenerationError):
            permit.settle(
                self._judge(error),
                cause=error.reason,
                summary=error.summary,
                retry_after=error.retry_after,
            )
        elif isinstance(error, Exception):
            permit.settle(self._judge(error))
        else:
            permit.settle(BreakerOutcome.NEUTRAL)  # cancelled, or the program is exiting

    def _judge(self, error: Exception) -> BreakerOutcome:
        try:
            return self._classify(error)
        except Exception as bug:  # noqa: BLE001 - the caller must receive the error of the call
            _logger.warning("classify of breaker %s failed with %s", self._name, type(bug).__name__)
            return BreakerOutcome.NEUTRAL
