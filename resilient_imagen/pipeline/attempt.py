"""The attempt: one request within its time limit, settled with the breaker and recorded."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from resilient_imagen.circuitbreaker.open_period import valid_hint
from resilient_imagen.pipeline.deadline import Deadline
from resilient_imagen.pipeline.failure import classify_failure
from resilient_imagen.pipeline.fitter import FittedImage
from resilient_imagen.pipeline.hedge import RequestClock
from resilient_imagen.pipeline.outcome import AttemptFailure, AttemptSuccess
from resilient_imagen.pipeline.overlap import MAX_IN_FLIGHT, CancelCause
from resilient_imagen.pipeline.previews import PreviewWatch
from resilient_imagen.providers.base import send_request
from resilient_imagen.reasons import BreakerOutcome
from resilient_imagen.result import Attempt
from resilient_imagen.telemetry.events import AttemptEnded, AttemptStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_imagen.circuitbreaker import Permit
    from resilient_imagen.pipeline.call_state import CallState
    from resilient_imagen.pipeline.failure import FailureClass
    from resilient_imagen.pipeline.fitter import ImageFitter
    from resilient_imagen.pipeline.hedge import OverlapPolicy
    from resilient_imagen.pipeline.outcome import AttemptOutcome
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.route_state import RouteState
    from resilient_imagen.providers.base import ProviderResult
    from resilient_imagen.ratelimit.limiter import Slot
    from resilient_imagen.settings import Settings
    from resilient_imagen.telemetry.dispatcher import SinkDispatcher

__all__ = ["AttemptExecutor"]

_NO_IMAGE: Final = FittedImage(b"", "")
"""Takes the place of the image of a probe whose caller has been served by another route."""


class AttemptExecutor:
    """Sends one request at a time, settles its permit and records it.

    Args:
        dispatcher: Receives the events of each request, except for failures that may be retried:
            the pipeline emits those.
        fitter: Makes a delivered image fit the request.
        overlap: Decides when the next route may start beside a request in flight.
        siblings: Returns all routes of a provider, for failures that concern the whole account.
    """

    def __init__(
        self,
        dispatcher: SinkDispatcher,
        fitter: ImageFitter,
        overlap: OverlapPolicy,
        siblings: Callable[[str], Sequence[Route]],
    ) -> None:
        self._dispatcher = dispatcher
        self._fitter = fitter
        self._overlap = overlap
        self._siblings = siblings

    def reconfigure(self, settings: Settings) -> None:
        """Use the delays of other settings; see `OverlapPolicy.reconfigure`."""
        self._overlap.reconfigure(settings)

    async def run(
        self, call: CallState, state: RouteState, slot: Slot, permit: Permit
    ) -> AttemptOutcome:
        """Send the request, settle its permit, record it, and return how it ended.

        Raises:
            BaseException: A cancellation or a local bug, which no retry makes up for.
        """
        loop = call.loop
        route, request = state.route, state.adapted.request
        if len(call.in_flight) >= MAX_IN_FLIGHT:
            await call.make_room()
        if call.success_event is not None:
            await _cancel_unneeded(state)
        cancellations = state.cancellations
        state.time_limit = route.timeout
        sent = self._begin(call, state, slot, permit)
        started = state.sent_at = loop.time()  # without the time of the sinks
        limit_at = started + state.time_limit
        # When a request is kept, its end is set once it has passed its limit.
        keeps = self._overlap.keeps
        timer = asyncio.timeout_at(
            None if keeps else state.deadline.attempt_timer_at(limit_at, call.deadline)
        )
        previews: PreviewWatch | None = None
        if request.partial_images is not None:
            previews = PreviewWatch(call, state)
            request = previews.attach(request)
        answer: ProviderResult | None = None
        try:
            with RequestClock(self._overlap, call, state, slot, permit, timer):
                async with timer:
                    answer = await send_request(route.provider, request, route.model)
            latency = loop.time() - started
            permit.answered()
            call.report("finishing", route)
            image = _NO_IMAGE if state.detached else await self._fitter.fit(request, answer)
        except BaseException as caught:  # noqa: BLE001 - a cancellation is recorded before it is raised
            # A provider may raise an error of its own on a cancellation, which remains one.
            cancelled = state.cancellations > cancellations
            error = (
                asyncio.CancelledError() if cancelled and isinstance(caught, Exception) else caught
            )
            now = loop.time()
            failure = classify_failure(
                error,
                started=started,
                now=now,
                cut_short=not (keeps or state.detached) and state.deadline.cuts_short(limit_at),
                timed_out=timer.expired(),
                call_deadline=Deadline(math.inf) if state.detached else call.deadline,
                cut_short_counts_after=partial(
                    route.cut_short_counts_after, call.request.resolution
                ),
                cancel_cause=state.cancel_cause,
                past_limit=state.past_limit,
            )
            if answer is not None:
                failure = failure.after_delivery(route.usage(answer, request.resolution))
            elif previews is not None and previews.count:
                failure = failure._replace(begun=True)
            call.failures += (caught, failure.error)
            silent = previews is not None and previews.is_silent()
            event = self._record_failure(call, state, sent, permit, failure, now, silent=silent)
            if (ours := failure.provider_error) is None:  # no retry or route makes up for it
                self._dispatcher.emit(event)
                raise failure.error  # noqa: B904 - what was caught, or a cancellation in its place
            return AttemptFailure(ours, event)
        silent = previews is not None and previews.is_silent()
        return self._record_success(
            call, state, sent, permit, answer, image, latency, silent=silent
        )

    def _begin(
        self, call: CallState, state: RouteState, slot: Slot, permit: Permit
    ) -> AttemptStarted:
        """Record that a request is sent now."""
        route = state.route
        overlap = (state.overlap or call.overlap) if call.in_flight else None
        call.overlap = call.overlap or overlap
        if call.on_start is not None:
            call.on_start.fire()
        call.report("sending", route)
        call.retries += state.step.note_sent(route) > 1
        number, endpoint = state.step.attempt_number, route.endpoint
        slot.consume()
        sent = AttemptStarted(
            at=call.loop.time(),
            call_id=call.id,
            provider=route.provider.name,
            model=route.model,
            number=number,
            limit=max(state.step.max_attempts, number),
            operation=call.request.operation,
            base_url=endpoint.base_url,
            telemetry_name=endpoint.telemetry_name,
            admitted=permit.state.value,
            probe=permit.probe,
            queue_s=state.queue_s,
            resolution=state.adapted.request.resolution,
            time_limit_s=state.time_limit,
            prompt_hints=state.adapted.hints,
            overlap=None if overlap is None else str(overlap),
        )
        permit.begin(origin=sent)
        self._dispatcher.emit(sent)
        return sent

    def _record_success(
        self,
        call: CallState,
        state: RouteState,
        sent: AttemptStarted,
        permit: Permit,
        answer: ProviderResult,
        image: FittedImage,
        latency: float,
        *,
        silent: bool,
    ) -> AttemptSuccess:
        """Settle the permit of a request that brought an image, and record it."""
        route, resolution = state.route, sent.resolution
        route.record_success(resolution, latency)
        settlement = permit.settle(BreakerOutcome.SUCCESS)
        usage = route.usage(answer, resolution)
        attempt = Attempt(
            route.provider.name,
            route.model,
            reason=None,
            status=None,
            latency_s=latency,
            retry_after=None,
            usage=usage,
            may_have_been_billed=True,
            images=1 + len(image.others),
            silent=silent,
        )
        call.record(attempt)
        event = AttemptEnded(
            at=call.loop.time(),
            call_id=call.id,
            sent=sent,
            attempt=attempt,
            settlement=settlement,
            status=200,
            vote=BreakerOutcome.SUCCESS,
            response_model=answer.model,
            response_id=answer.response_id,
            finish_reason=answer.finish_reason,
            delivered_by=_route_of(call.success_event),
            unused=call.success_event is not None or call.ended,
        )
        self._dispatcher.emit(event)
        if not event.unused:
            call.success_event = event
        return AttemptSuccess(route, image, usage, state.adapted, event)

    def _record_failure(
        self,
        call: CallState,
        state: RouteState,
        sent: AttemptStarted,
        permit: Permit,
        failure: FailureClass,
        now: float,
        *,
        silent: bool,
    ) -> AttemptEnded:
        """Settle the permit, open the circuits of the whole account if need be, and record it."""
        error, route = failure.provider_error, state.route
        if error is not None:
            error.set_route(route.provider.name, route.model)
            error.scrub(call.request.prompt)
            error.usage = failure.usage
            error.retry_after = valid_hint(error.retry_after)
        hint = None if error is None else error.retry_after
        settlement = permit.settle(
            failure.vote,
            cause=failure.trip_cause,
            summary=failure.summary,
            retry_after=hint,
        )
        if error is not None and error.account_wide and failure.vote is BreakerOutcome.TRIP:
            for sibling in self._siblings(route.provider.name):
                sibling.account_failure = (error.reason, error.summary)
                if sibling is not route:
                    sibling.breaker.force_trip(
                        cause=error.reason, summary=error.summary, retry_after=hint, origin=sent
                    )
        attempt = Attempt(
            route.provider.name,
            route.model,
            reason=failure.reason,
            status=failure.status,
            latency_s=now - state.sent_at,
            retry_after=hint,
            usage=failure.usage,
            may_have_been_billed=failure.may_have_been_billed,
            silent=silent,
        )
        call.record(attempt)
        cause = state.cancel_cause if error is None else None
        return AttemptEnded(
            at=now,
            call_id=call.id,
            sent=sent,
            attempt=attempt,
            settlement=settlement,
            status=attempt.status,
            vote=failure.vote,
            cut_short=failure.cut_short,
            cancel_cause=None if cause is None else str(cause),
            delivered_by=_route_of(call.success_event),
            error_type=(error and error.vendor_error) or type(failure.error).__name__,
            vendor_message=None if error is None else error.vendor_message,
        )


async def _cancel_unneeded(state: RouteState) -> NoReturn:
    """Cancel the current task before it sends a request, because the call has its image already.

    Raises:
        CancelledError: Always.
    """
    state.cancel(CancelCause.DELIVERED)
    await asyncio.sleep(0)
    raise AssertionError("a task that was cancelled continues")


def _route_of(event: AttemptEnded | None) -> str | None:
    return None if event is None else f"{event.provider}:{event.model}"
