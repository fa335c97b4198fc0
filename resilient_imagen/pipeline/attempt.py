"""The last stage: one request within its time limit, its verdict for the breaker, its report."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, TypeAlias

from resilient_imagen.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    ImageGenerationError,
    SaturatedError,
    provider_failure,
)
from resilient_imagen.pipeline.deadline import Deadline
from resilient_imagen.providers.base import ask
from resilient_imagen.providers.retry_after import believable_hint
from resilient_imagen.reasons import POLICIES, BreakerOutcome, Reason
from resilient_imagen.result import Attempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from resilient_imagen.circuitbreaker import Permit
    from resilient_imagen.pipeline.call import CallState
    from resilient_imagen.pipeline.emitter import EventEmitter
    from resilient_imagen.pipeline.route import AdaptedRequest, Route
    from resilient_imagen.pipeline.route_state import RouteState
    from resilient_imagen.providers.base import ProviderImage
    from resilient_imagen.ratelimit.limiter import Slot
    from resilient_imagen.request import ImageRequest
    from resilient_imagen.result import Usage

__all__ = ["AttemptExecutor", "AttemptSuccess", "FittedImage"]


class FittedImage(NamedTuple):
    """A delivered picture after it was made to fit."""

    data: bytes
    mime_type: str
    note: str | None = None
    """What was done to make it fit, in words; None when the bytes passed untouched."""


class AttemptSuccess(NamedTuple):
    """A picture, ready for the caller, and the route it came by."""

    route: Route
    image: FittedImage
    usage: Usage
    adapted: AdaptedRequest
    """What became of the references for this route's model."""


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
"""Endings without a count after which the vendor may still have made, and billed, the picture.

The vendors count what they answer; who leaves the count out is a relay, and relays lose pictures
that were paid for. Not so: overload, when nothing was begun, and blocks, which are not charged.
"""

_ENDED_BY_CALLER: Final = frozenset({Reason.CANCELLED, Reason.DEADLINE})

_AS_THE_PROVIDERS: Final[Mapping[Reason, Reason]] = {
    Reason.CIRCUIT_OPEN: Reason.OVERLOADED,
    Reason.SATURATED: Reason.OVERLOADED,
    Reason.CANCELLED: Reason.OVERLOADED,
    Reason.DEADLINE: Reason.TIMEOUT,
}
"""Reasons that say what this pipeline or its caller did, and what they mean in a provider's error:
one that is a client itself may raise them about its own breakers, queues and deadline."""

_OWN_ERRORS: Final = (CircuitOpenError, SaturatedError, DeadlineExceededError)
"""Errors that the pipeline acts on when it has raised them itself."""

FitImage: TypeAlias = "Callable[[ImageRequest, ProviderImage], Awaitable[FittedImage]]"
DecideRetry: TypeAlias = "Callable[[RouteState, ImageGenerationError], float | None]"


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """How a request ended, whatever way it did."""

    reason: Reason | None
    verdict: BreakerOutcome
    error: BaseException
    cut_short: bool = False
    usage: Usage | None = None
    delivered: bool = False
    """True when the picture came, and what failed is ours."""

    @property
    def cause(self) -> Reason | None:
        """Why the breaker opened, if this request opens it: the route did not answer in time."""
        return Reason.TIMEOUT if self.cut_short else self.reason

    @property
    def brief(self) -> str | None:
        """The same in few words."""
        if isinstance(self.error, ImageGenerationError):
            return self.error.summary
        return "timed out" if self.cut_short else None

    @property
    def status(self) -> int | None:
        """The HTTP status that it came with."""
        return self.error.status if isinstance(self.error, ImageGenerationError) else None

    @property
    def may_have_been_billed(self) -> bool:
        """Whether the vendor worked on it: seen from its count, or possibly unseen."""
        if self.delivered:
            return True
        if self.usage is not None:
            made, total = self.usage["output_tokens"] or 0, self.usage["total_tokens"] or 0
            return made > 0 or total > (self.usage["input_tokens"] or 0)
        refused = self.status is not None and 400 <= self.status < 500  # noqa: PLR2004 - HTTP's codes
        unsent = isinstance(self.error, ImageGenerationError) and self.error.not_sent
        return self.reason in _POSSIBLY_BILLED and not refused and not unsent


class AttemptExecutor:
    """Sends one request at a time and tells the breaker and the sinks how it went.

    Args:
        reporter: Tells the sinks.
        finish: Makes a delivered picture fit the request.
        siblings: All routes of a provider, for failures that concern the whole account.
    """

    def __init__(
        self, emitter: EventEmitter, finish: FitImage, siblings: Callable[[str], Sequence[Route]]
    ) -> None:
        self._emitter = emitter
        self._fit = finish
        self._siblings = siblings

    async def run(
        self, call: CallState, state: RouteState, ticket: Slot, permit: Permit, plan: DecideRetry
    ) -> AttemptSuccess:
        """Send the request; ``plan`` says whether a failed one is tried again.

        Raises:
            ImageGenerationError: It failed; ``turn.failed`` and ``turn.retry_in`` are set.
        """
        loop = asyncio.get_running_loop()
        route = state.route
        request = state.adapted.request
        left_before = _cancellation_count()
        call.start_signal.fire()
        state.attempt_number += 1
        call.retries += state.attempt_number > 1
        permit.begin(origin=call.id)
        ticket.consume()
        self._emitter.attempt_started(call, state, permit)
        started = state.sent_at = loop.time()
        limit = state.deadline.limit_attempt(started, route.timeout, call.deadline)
        scope = asyncio.timeout_at(limit.timer_at)
        answer: ProviderImage | None = None
        try:
            async with scope:
                answer = await ask(route.provider, request, route.model)
            latency = loop.time() - started
            permit.answered()
            picture = await self._fit(request, answer)
        except BaseException as caught:  # noqa: BLE001 - cancellation is settled and goes its way, too
            # A provider may make an error of its own out of a cancellation: it is one all the same.
            left = _cancellation_count() > left_before
            error = asyncio.CancelledError() if left and isinstance(caught, Exception) else caught
            ending = _classify(call, state, error, timed_out=scope.expired(), started=started)
            if answer is not None:
                if ending.reason in _ENDED_BY_CALLER:
                    ending = replace(
                        ending, verdict=BreakerOutcome.SUCCESS
                    )  # the service has answered
                usage = route.usage(answer, request.resolution)
                ending = replace(ending, usage=usage, delivered=True)
            self._record_failure(call, state, permit, ending, loop.time() - started, plan)
        route.record_success(request.resolution, latency)
        settlement = permit.settle(BreakerOutcome.SUCCESS)
        usage = route.usage(answer, request.resolution)
        attempt = Attempt(
            route.provider.name,
            route.model,
            reason=None,
            status=None,
            latency_s=latency,
            retry_after=None,
            usage=usage,
            may_have_been_billed=True,
        )
        call.attempts.append(attempt)
        self._emitter.attempt_served(call, state, settlement, answer, attempt)
        return AttemptSuccess(route, picture, usage, state.adapted)

    def _record_failure(
        self,
        call: CallState,
        state: RouteState,
        permit: Permit,
        ending: AttemptOutcome,
        latency: float,
        plan: DecideRetry,
    ) -> NoReturn:
        """Vote, record, decide what follows, report; then let the failure go its way."""
        error, route = ending.error, state.route
        call.failures.append(error)
        ours = error if isinstance(error, ImageGenerationError) else None
        if ours is not None:
            ours.set_route(route.provider.name, route.model)
            ours.scrub(call.request.prompt)
            ours.usage = ending.usage
            ours.retry_after = believable_hint(ours.retry_after)
        hint = None if ours is None else ours.retry_after
        settlement = permit.settle(
            ending.verdict,
            cause=ending.cause,
            brief=ending.brief,
            retry_after=hint,
            origin=call.id,
        )
        if ours is not None and ours.account_wide and ending.verdict is BreakerOutcome.TRIP:
            for sibling in self._siblings(route.provider.name):
                sibling.account_failure = (ours.reason, ours.summary)
                if sibling is not route:
                    sibling.breaker.force_trip(
                        cause=ours.reason, brief=ours.summary, retry_after=hint, origin=call.id
                    )
        attempt = Attempt(
            route.provider.name,
            route.model,
            reason=ending.reason,
            status=ending.status,
            latency_s=latency,
            retry_after=hint,
            usage=ending.usage,
            may_have_been_billed=ending.may_have_been_billed,
        )
        call.attempts.append(attempt)
        if ours is not None:
            state.last_error = ours
            state.retry_in = plan(state, ours)
        self._emitter.attempt_failed(
            call,
            state,
            settlement,
            error,
            attempt,
            cut_short=ending.cut_short,
            vote=ending.verdict,
        )
        raise error


def _cancellation_count() -> int:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # thrown away with its loop
        return 0
    return 0 if task is None else task.cancelling()


def _classify(
    call: CallState, state: RouteState, error: BaseException, *, timed_out: bool, started: float
) -> AttemptOutcome:
    if timed_out and isinstance(error, Exception):
        cut_short = state.deadline.at < started + state.route.timeout
        verdict = _vote_of_cut_short(call, state, started) if cut_short else BreakerOutcome.FAILURE
        late = provider_failure(
            Reason.TIMEOUT, provider=state.route.provider.name, model=state.route.model
        )
        late.__suppress_context__ = True
        return AttemptOutcome(Reason.TIMEOUT, verdict, late, cut_short)
    if isinstance(error, GeneratorExit):  # thrown away, perhaps when its loop was gone
        return AttemptOutcome(Reason.CANCELLED, BreakerOutcome.NEUTRAL, error)
    if isinstance(error, asyncio.CancelledError):
        if not call.deadline.has_passed(asyncio.get_running_loop().time()):
            return AttemptOutcome(Reason.CANCELLED, BreakerOutcome.NEUTRAL, error)
        verdict = _vote_of_cut_short(call, state, started)
        return AttemptOutcome(Reason.DEADLINE, verdict, error, cut_short=True)
    if isinstance(error, ImageGenerationError):
        error = _as_providers(error)
        return AttemptOutcome(
            error.reason, POLICIES[error.reason].verdict, error, usage=error.usage
        )
    return AttemptOutcome(
        None, BreakerOutcome.NEUTRAL, error
    )  # a local trouble: it surfaces as what it is


def _vote_of_cut_short(call: CallState, state: RouteState, started: float) -> BreakerOutcome:
    """Return the verdict on a request that the reserve or the deadline ended before its limit.

    It counts as a failure in a row if it ran for longer than a healthy one would have. The failure
    rate leaves it out, since it may have been about to succeed.
    """
    counts_after = state.route.cut_short_counts_after(call.request.resolution)
    counts = Deadline.after(counts_after, started).has_passed(asyncio.get_running_loop().time())
    return BreakerOutcome.THROTTLED if counts else BreakerOutcome.NEUTRAL


def _as_providers(error: ImageGenerationError) -> ImageGenerationError:
    """Return a provider's error with a reason that is not the pipeline's own."""
    if error.reason not in _AS_THE_PROVIDERS and not isinstance(error, _OWN_ERRORS):
        return error
    failure = provider_failure(
        _AS_THE_PROVIDERS.get(error.reason, error.reason),
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
