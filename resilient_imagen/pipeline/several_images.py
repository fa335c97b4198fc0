"""Several images: the further requests of a call, after its first image has come.

The first image of a call is requested as any other. It shows which route serves, so the others are
requested there at the same time, without fallback or hedging; each is queued, guarded by the
breaker, retried and recorded like the request of a call on a single route. Images that do not come
by the deadline, or fail, are left out: the call succeeds with those that were delivered.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from resilient_imagen.cost import sum_known
from resilient_imagen.errors import ImageGenerationError
from resilient_imagen.pipeline.call_state import CallState
from resilient_imagen.pipeline.deadline import Deadline
from resilient_imagen.pipeline.outcome import AttemptSuccess
from resilient_imagen.reasons import Reason
from resilient_imagen.request import MAX_SEED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from resilient_imagen.result import Usage

__all__ = ["SeveralImages"]

_MARGIN: Final = 0.05
"""Seconds before the deadline at which further images are given up, for those that have come to
reach the caller in time."""


class SeveralImages:
    """The stage that completes a call for several images.

    Args:
        serve: Serves a call on its routes.
    """

    def __init__(self, serve: Callable[[CallState], Awaitable[AttemptSuccess]]) -> None:
        self._serve = serve
        self._tasks: set[asyncio.Task[AttemptSuccess | BaseException]] = set()
        """Tasks that have not ended. The event loop itself keeps weak references only."""

    async def complete(
        self, call: CallState, first: AttemptSuccess, timer: asyncio.Timeout
    ) -> AttemptSuccess:
        """Request the images that are missing, and return all of them.

        Args:
            call: The call, which has its first image.
            first: The success with that image.
            timer: Ends the call at its deadline, or when its client is closed. Then the images that
                have come are returned.

        Raises:
            BaseException: A cancellation by the caller or a local bug.
        """
        requested = call.request.n or 1
        missing = requested - 1 - len(first.image.others)
        if missing <= 0:
            return first
        others: list[AttemptSuccess] = []
        reasons: set[Reason] = set()
        if not first.route.supports("n"):  # else the vendor chose to deliver fewer
            for outcome in await self._request(call, first, missing, timer):
                if isinstance(outcome, AttemptSuccess):
                    others.append(outcome)
                else:
                    reasons.add(outcome)
        return _joined(first, others, reasons, requested)

    async def _request(
        self, call: CallState, first: AttemptSuccess, missing: int, timer: asyncio.Timeout
    ) -> list[AttemptSuccess | Reason]:
        """Return an image, or the reason why it is missing, for each missing image."""
        deadline = Deadline(call.deadline.at - _MARGIN)
        if not deadline.is_worth_starting(call.loop.time()):
            return [Reason.DEADLINE] * missing
        parts = [_part_of(call, first, deadline, number) for number in range(1, missing + 1)]
        tasks = [call.loop.create_task(_run(self._serve, part)) for part in parts]
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        cancellations = _cancellations()
        try:
            try:
                await _wait(tasks, deadline, call.loop)
            finally:
                await _end(tasks)
        except asyncio.CancelledError:
            if not timer.expired() or _cancellations() > cancellations + 1:
                raise  # the caller has left
        finally:
            _merge(call, parts)
        return [_outcome(call, task) for task in tasks]


def _part_of(call: CallState, first: AttemptSuccess, deadline: Deadline, number: int) -> CallState:
    """Return the state of a call for one further image, whose records are those of ``call``."""
    request = first.adapted.request
    seed = None if request.seed is None else (request.seed + number) % (MAX_SEED + 1)
    return CallState(
        id=call.id,
        request=replace(request, n=None, seed=seed),
        steps=((first.route,),),
        started=call.started,
        deadline=deadline,
        progress=call.progress,
        attempts=call.attempts,
        failures=call.failures,
        on_late_attempt=call.on_late_attempt,
    )


async def _run(
    serve: Callable[[CallState], Awaitable[AttemptSuccess]], part: CallState
) -> AttemptSuccess | BaseException:
    """Return the image, or the exception that the call's task is to judge."""
    try:
        return await serve(part)
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a task must not raise what ends the program
        return error


async def _wait(
    tasks: Iterable[asyncio.Task[AttemptSuccess | BaseException]],
    deadline: Deadline,
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Wait until all tasks are done, one has met a local bug, or the time is up."""
    pending = set(tasks)
    while pending and (left := deadline.at - loop.time()) > 0:
        done, pending = await asyncio.wait(
            pending,
            timeout=None if deadline.timer_at is None else left,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if any(not task.cancelled() and _is_bug(task.result()) for task in done):
            return


async def _end(tasks: Sequence[asyncio.Task[AttemptSuccess | BaseException]]) -> None:
    """Cancel the tasks that are not done, and wait until their requests are recorded."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        with suppress(RuntimeError):  # the loop is closed
            task.cancel()
    if pending and not isinstance(sys.exception(), GeneratorExit):  # then nothing can be awaited
        await asyncio.wait(pending)  # each gives its requests a limited time to end


def _merge(call: CallState, parts: Sequence[CallState]) -> None:
    """Add what the parts counted to the call. They ran at the same time, so waits do not add up."""
    call.queue_s += max(part.queue_s for part in parts)
    call.backoff_s += max(part.backoff_s for part in parts)
    for part in parts:
        part.ended = True
        call.retries += part.retries
        call.short_circuits += part.short_circuits


def _outcome(
    call: CallState, task: asyncio.Task[AttemptSuccess | BaseException]
) -> AttemptSuccess | Reason:
    """Return an image or the reason why it is missing; raise a local bug."""
    if not task.done() or task.cancelled():
        out_of_time = call.deadline.has_passed(call.loop.time() + _MARGIN)
        return Reason.DEADLINE if out_of_time else Reason.CANCELLED
    ended = task.result()
    if isinstance(ended, AttemptSuccess):
        return ended
    call.failures.append(ended)
    if not isinstance(ended, ImageGenerationError):
        raise ended
    return ended.reason


def _is_bug(ended: object) -> bool:
    return isinstance(ended, BaseException) and not isinstance(ended, ImageGenerationError)


def _cancellations() -> int:
    """Return how often the current task was asked to cancel."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _joined(
    first: AttemptSuccess,
    others: Sequence[AttemptSuccess],
    reasons: Iterable[Reason],
    requested: int,
) -> AttemptSuccess:
    """Return one success with all images and the sum of their usage."""
    image = first.image
    images = (*image.others, *(other.image for other in others))
    notes = [*image.notes, *(note for other in others for note in other.image.notes)]
    if len(images) + 1 < requested:
        provider = first.route.provider.name
        why = ", ".join(sorted(reasons)) or f"{provider} returned no more usable images"
        notes.insert(0, f"{len(images) + 1} of {requested} images were delivered: {why}")
    return first._replace(
        image=image._replace(notes=tuple(dict.fromkeys(notes)), others=images),
        usage=_sum([first.usage, *(other.usage for other in others)]),
    )


def _sum(usages: Sequence[Usage]) -> Usage:
    """Return the sum of usages of one route; None for a count that one of them lacks."""
    cost = sum_known(usage["cost_usd"] for usage in usages)
    return {
        "provider": usages[0]["provider"],
        "model": usages[0]["model"],
        "input_tokens": sum_known(usage["input_tokens"] for usage in usages),
        "output_tokens": sum_known(usage["output_tokens"] for usage in usages),
        "total_tokens": sum_known(usage["total_tokens"] for usage in usages),
        "cost_usd": None if cost is None else round(cost, 6),
    }
