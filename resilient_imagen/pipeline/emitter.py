"""Turns what the pipeline does into events: the one place that knows both."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from resilient_imagen.circuitbreaker import BreakerState
from resilient_imagen.errors import ImageGenerationError
from resilient_imagen.reasons import BreakerOutcome, Reason
from resilient_imagen.telemetry import events

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker import (
        CircuitBreaker,
        Permit,
        Rejection,
        Settlement,
        Transition,
    )
    from resilient_imagen.pipeline.outcome import AttemptFailure
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.state import CallState, RouteState
    from resilient_imagen.providers.base import ProviderResult
    from resilient_imagen.result import Attempt, ImageResult
    from resilient_imagen.telemetry.dispatcher import SinkDispatcher

__all__ = ["EventEmitter"]


class EventEmitter:
    """Tells the sinks, in the words of the events.

    What no sink makes anything of is not put together: each kind of event has a level, the highest
    that the log line about it may have.

    Args:
        dispatcher: Passes events on to the sinks.
        skips_open: Whether calls leave a route whose circuit is open for the next one.
    """

    def __init__(self, dispatcher: SinkDispatcher, *, skips_open: bool = True) -> None:
        self._dispatcher = dispatcher
        self._skips_open = skips_open
        self._configured: list[CircuitBreaker] = []

    def request_started(self, call: CallState) -> None:
        """A caller asked for an image."""
        call.told_from = self._dispatcher.told_from()
        if call.told_from > logging.DEBUG:
            return
        primary = call.routes[0]
        self._dispatcher.emit(
            events.RequestStarted(
                at=call.started,
                call_id=call.id,
                request=call.request,
                provider=primary.provider.name,
                model=primary.model,
            )
        )

    def references_changed(self, call: CallState) -> None:
        """References were dropped or mended."""
        self._dispatcher.emit(
            events.ReferencesChanged(
                at=_now(),
                call_id=call.id,
                dropped=call.dropped_references,
                notes=call.reference_notes,
            )
        )

    def attempt_started(self, call: CallState, state: RouteState, permit: Permit) -> None:
        """A request is about to be sent."""
        if call.told_from > logging.NOTSET:
            return
        self._dispatcher.emit(
            events.AttemptStarted(
                at=_now(),
                call_id=call.id,
                provider=state.route.provider.name,
                model=state.route.model,
                number=state.attempt_number,
                limit=state.max_attempts,
                operation=call.request.operation,
                base_url=state.route.base_url,
                admitted=permit.state.value,
                probe=permit.probe,
                queue_s=state.queue_s,
                prompt_hints=state.adapted.hints,
            )
        )

    def attempt_served(
        self,
        call: CallState,
        state: RouteState,
        permit: Permit,
        settlement: Settlement,
        answer: ProviderResult,
        attempt: Attempt,
    ) -> None:
        """A request delivered."""
        if call.told_from > logging.INFO:
            return
        call.success_event = events.AttemptEnded(
            **_of_attempt(call, state, permit, settlement, attempt),
            status=200,
            retry_in=None,
            cut_short=False,
            vote=BreakerOutcome.SUCCESS,
            response_model=answer.model,
            response_id=answer.response_id,
            finish_reason=answer.finish_reason,
        )
        self._dispatcher.emit(call.success_event)

    def attempt_failed(
        self,
        call: CallState,
        state: RouteState,
        outcome: AttemptFailure,
        *,
        retry_in: float | None,
    ) -> None:
        """Emit that a request failed, timed out or was cancelled, and the retry that follows."""
        failure, attempt = outcome.failure, outcome.attempt
        ours = failure.provider_error
        if call.told_from <= logging.ERROR:
            vendor_error = None if ours is None else ours.vendor_error
            self._dispatcher.emit(
                events.AttemptEnded(
                    **_of_attempt(call, state, outcome.permit, outcome.settlement, attempt),
                    status=attempt.status,
                    retry_in=retry_in,
                    cut_short=failure.cut_short,
                    vote=failure.vote,
                    error_type=vendor_error or type(failure.error).__name__,
                    vendor_message=None if ours is None else ours.vendor_message,
                )
            )
        if ours is not None and retry_in is not None and call.told_from <= logging.INFO:
            self._dispatcher.emit(
                events.RetryScheduled(
                    at=_now(),
                    call_id=call.id,
                    provider=state.route.provider.name,
                    model=state.route.model,
                    number=state.attempt_number,
                    reason=ours.reason,
                    delay_s=retry_in,
                    hinted=ours.retry_after is not None,
                    base_url=state.route.base_url,
                )
            )

    def short_circuited(self, call: CallState, route: Route, rejection: Rejection) -> None:
        """A route was skipped by its breaker."""
        if call.told_from > logging.INFO:
            return
        self._dispatcher.emit(
            events.ShortCircuited(
                at=_now(),
                call_id=call.id,
                provider=route.provider.name,
                model=route.model,
                breaker=rejection.metrics,
                retry_after=rejection.retry_after,
                cause=rejection.cause,
            )
        )

    def route_added(self, breaker: CircuitBreaker, *, configured: bool) -> None:
        """A route came into use; its breaker is named ``provider:model``."""
        if configured:
            self._configured.append(breaker)
        provider, _, model = breaker.name.partition(":")
        self._dispatcher.emit(
            events.RouteRegistered(
                at=_now(), provider=provider, model=model, breaker=breaker, configured=configured
            )
        )

    def breaker_changed(self, transition: Transition) -> None:
        """A breaker changed its state."""
        provider, _, model = transition.name.partition(":")
        self._dispatcher.emit(
            events.BreakerChanged(
                at=transition.at,
                provider=provider,
                model=model,
                transition=transition,
                next_route=self._next_route(transition),
            )
        )

    def _next_route(self, transition: Transition) -> str | None:
        """Return the first usable route behind one that has just closed its doors."""
        shut = transition.to_state in {BreakerState.OPEN, BreakerState.FORCED_OPEN}
        if not shut or not self._skips_open:
            return None
        names = [breaker.name for breaker in self._configured]
        # A model that a caller names replaces the first route's.
        behind = names.index(transition.name) if transition.name in names else 0
        usable = (
            breaker.name for breaker in self._configured[behind + 1 :] if breaker.allows_calls()
        )
        return next(usable, None)

    def fell_back(self, call: CallState, left: Route, following: Route, cause: Reason) -> None:
        """A route was left for the next one."""
        if call.told_from > logging.WARNING:
            return
        self._dispatcher.emit(
            events.RouteFallback(
                at=_now(),
                call_id=call.id,
                from_route=left.name,
                to_route=following.name,
                cause=cause,
            )
        )

    def request_ended(
        self, call: CallState, *, result: ImageResult | None, error: BaseException | None
    ) -> None:
        """The call is over."""
        if call.told_from > (logging.INFO if error is None else logging.ERROR):
            return
        ours = error if isinstance(error, ImageGenerationError) else None
        if result is not None:
            outcome = "success"
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            outcome = "cancelled"
        else:
            out_of_time = ours is not None and ours.reason is Reason.DEADLINE
            outcome = "deadline" if out_of_time else "error"
        now = _now()
        self._dispatcher.emit(
            events.RequestEnded(
                at=now,
                call_id=call.id,
                operation=call.request.operation,
                provider=call.routes[0].provider.name,
                outcome=outcome,
                latency_s=now - call.started,
                attempts=len(call.attempts),
                retries=call.retries,
                short_circuits=call.short_circuits,
                queue_s=call.queue_s,
                backoff_s=call.backoff_s,
                setup_s=call.setup_s,
                fallback_cause=call.fallback_cause,
                fallback_from=call.routes[0].name if call.fallback_cause is not None else None,
                result=result,
                error=ours,
                error_type=None if error is None else type(error).__name__,
                served=call.success_event,
            )
        )

    def warned(self, code: str, message: str, *, call_id: str = "") -> None:
        """Something an operator should know."""
        self._dispatcher.emit(
            events.OperatorWarning(at=_now(), call_id=call_id, code=code, message=message)
        )


def _of_attempt(
    call: CallState, state: RouteState, permit: Permit, settlement: Settlement, attempt: Attempt
) -> dict[str, Any]:
    """Return the fields of every AttemptEnded, however the request ended."""
    return {
        "at": _now(),
        "call_id": call.id,
        "provider": attempt.provider,
        "model": attempt.model,
        "reason": attempt.reason,
        "latency_s": attempt.latency_s,
        "retry_after": attempt.retry_after,
        "usage": attempt.usage,
        "may_have_been_billed": attempt.may_have_been_billed,
        "number": state.attempt_number,
        "limit": state.max_attempts,
        "operation": call.request.operation,
        "base_url": state.route.base_url,
        "queue_s": state.queue_s,
        "counted": settlement.counted,
        "transition": settlement.transition,
        "breaker": settlement.metrics,
        "admitted": permit.state.value,
        "probe": permit.probe,
    }


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:  # a client made outside a loop, or a call thrown away with its loop
        return time.monotonic()
