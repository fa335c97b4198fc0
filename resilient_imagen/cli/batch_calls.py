"""Calls of a batch: which of them have a request in flight, and which end when the run stops."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resilient_imagen.telemetry.events import (
    AttemptEnded,
    AttemptStarted,
    RequestEnded,
    RequestStarted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.reasons import Reason
    from resilient_imagen.telemetry.events import Event

__all__ = ["BatchCalls"]

_BEFORE: Final = 0.05
"""Seconds before a request's time limit at which it is dropped: the next vendor would be asked."""


@dataclass(slots=True, eq=False)
class _Call:
    task: asyncio.Task[object]
    in_flight: int = 0
    time_limit_at: float = 0.0
    """Loop time of the time limit of the latest request."""
    has_result: bool = False
    """Whether an image has come, or the call has ended."""

    @property
    def is_under_way(self) -> bool:
        return self.in_flight > 0 or self.has_result

    def drop(self) -> None:
        if not self.has_result:
            self.task.cancel()


class BatchCalls:
    """An event sink that follows the calls of a client and, after ``stop``, prevents new requests.

    A call without a request in flight would only send another one, which is charged, so its task is
    cancelled. A request in flight may be charged in any case, so it has until its time limit. Two
    cases are not prevented: the further images of a call that has its first one, and hedges.

    Args:
        falls_back_on: Returns whether a call continues on the next route after a failure.
    """

    inline = True

    def __init__(self, falls_back_on: Callable[[Reason], bool]) -> None:
        self._falls_back_on = falls_back_on
        self._calls: dict[str, _Call] = {}
        self._stopped = False

    def stop(self) -> set[asyncio.Task[object]]:
        """Prevent new requests, and return the tasks of the calls that are to finish."""
        self._stopped = True
        finishing = [each for each in self._calls.values() if each.is_under_way]
        for call in finishing:
            if not call.has_result:
                call.task.get_loop().call_at(call.time_limit_at - _BEFORE, call.drop)
        return {each.task for each in finishing if not each.task.done()}

    def handle(self, event: Event) -> None:
        """Follow the requests of a call."""
        if isinstance(event, RequestStarted):
            if (task := asyncio.current_task()) is not None:
                self._calls[event.call_id] = _Call(task)
            return
        if (call := self._calls.get(event.call_id)) is None:
            return
        match event:
            case AttemptStarted():
                call.in_flight += 1
                call.time_limit_at = event.at + event.time_limit_s
            case AttemptEnded():
                call.in_flight -= 1
                if event.attempt.reason is None:
                    call.has_result = True
                elif self._stopped and not call.in_flight and self._continues_after(event):
                    call.drop()
            case RequestEnded():
                call.has_result = True
            case _:
                pass

    def _continues_after(self, event: AttemptEnded) -> bool:
        reason = event.attempt.reason
        return event.retry_in is not None or (reason is not None and self._falls_back_on(reason))
