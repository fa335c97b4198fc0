"""A route with everything that guards it: the provider, its queue, its breaker, its time limit."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, field, replace
from inspect import isawaitable
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen import models
from resilient_imagen.circuitbreaker import BreakerState
from resilient_imagen.cost import priced_usage
from resilient_imagen.providers.base import endpoint_of, supports
from resilient_imagen.result import DroppedReference

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker import CircuitBreaker, Transition
    from resilient_imagen.providers.base import Endpoint, PromptHints, Provider, ProviderResult
    from resilient_imagen.ratelimit.limiter import RateLimiter, Slot
    from resilient_imagen.reasons import Reason
    from resilient_imagen.request import ImageRequest
    from resilient_imagen.result import Usage
    from resilient_imagen.snapshots import RouteSnapshot

__all__ = ["FACTOR_OF_USUAL", "AdaptedRequest", "Route"]

_LATENCIES: Final = 100
"""Successes whose latencies are kept per resolution, for percentiles."""
_USUAL_LATENCIES: Final = 16
"""Latest successes that the usual latency is the median of."""
_MIN_LATENCIES: Final = 4
"""Successes below which nothing is taken for measured."""
FACTOR_OF_USUAL: Final = 1.5
"""Multiple of the usual latency from which a request counts as far beyond it."""
_SHARE_OF_LIMIT: Final = 0.7


class AdaptedRequest(NamedTuple):
    """A request cut to what one model takes."""

    request: ImageRequest
    dropped: tuple[DroppedReference, ...] = ()
    """References beyond what the model takes."""
    notes: tuple[str, ...] = ()
    """References that were made smaller, a picture that will be, and prompt hints, in words."""
    hints: PromptHints | None = None
    """The texts that the provider adds to the prompt; None if it does not report them."""


@dataclass(slots=True, eq=False)
class Route:
    """One ``provider:model``. The queue belongs to the provider, the breaker to the route."""

    provider: Provider
    model: str
    breaker: CircuitBreaker
    limiter: RateLimiter
    timeout: float
    """Seconds of wall clock per request."""
    max_total_bytes: int | None = None
    """Bytes of all references together that the operator allows; None for what the model takes."""
    latencies: dict[str, deque[float]] = field(default_factory=dict)
    """Seconds that the latest successes took, by resolution."""
    account_failure: tuple[str, str | None] | None = None
    """Cause and short text of what last closed the whole account to us."""
    last_fallback: tuple[float, Reason] | None = None
    """When (loop time) and why a call last left this route for the next."""
    step: str | None = None
    """The step that it shares with other accounts, as in IMAGE_GEN_ROUTES; None if it is alone."""
    name: str = field(init=False)
    """``provider:model``, as in IMAGE_GEN_ROUTES."""
    endpoint: Endpoint = field(init=False)
    """Account and address that requests are sent to."""

    def __post_init__(self) -> None:
        """Set the constants of provider and model."""
        self.name = f"{self.provider.name}:{self.model}"
        self.endpoint = endpoint_of(self.provider)

    @property
    def vendor(self) -> str:
        """The vendor whose rows of the model table hold for this route."""
        return self.endpoint.vendor

    @property
    def serves_own_models_only(self) -> bool:
        """Whether models of other vendors are an error on this route.

        A relay under another name than a vendor's may serve the models of several vendors.
        """
        endpoint = self.endpoint
        relays = endpoint.any_vendor and self.provider.name not in models.VENDORS
        return endpoint.vendor in models.VENDORS and not relays

    def on_transition(self, transition: Transition) -> None:
        """The breaker changed: an account that serves again is closed to us no more."""
        if transition.to_state is BreakerState.CLOSED and not transition.shadow:
            self.account_failure = None

    def rejects_at(self, when: float) -> bool:
        """Whether the breaker, in its present state, rejects callers at loop time ``when``."""
        until = self.breaker.blocked_until()
        return until is not None and until > when

    @property
    def forgettable(self) -> bool:
        """Whether a new breaker would do as well: this one is closed, and nothing failed last."""
        numbers = self.breaker.metrics()
        return numbers.state is BreakerState.CLOSED and numbers.consecutive == 0

    def record_success(self, resolution: str, seconds: float) -> None:
        """Remember how long a success took."""
        if resolution not in self.latencies:
            self.latencies[resolution] = deque(maxlen=_LATENCIES)
        self.latencies[resolution].append(seconds)

    def measured_latency(self, resolution: str) -> float | None:
        """Return the median seconds of the latest successes; None if there are too few of them."""
        kept = self.latencies.get(resolution, ())
        if len(kept) < _MIN_LATENCIES:
            return None
        return median(islice(reversed(kept), _USUAL_LATENCIES))

    def usual_latency(self, resolution: str) -> float | None:
        """Return the measured latency, else the model table's; None while nothing is known."""
        measured = self.measured_latency(resolution)
        if measured is not None:
            return measured
        return models.typical_latency(self.vendor, self.model, resolution)

    def estimated_wait(self, resolution: str, slot: Slot | None = None) -> float:
        """Return the seconds until the queue lets the caller with ``slot`` send, or a newcomer.

        While no latency is known, a request is taken to last until its time limit: an occupied slot
        must not count as free.
        """
        usual = self.usual_latency(resolution)
        return self.limiter.shortest_wait(self.timeout if usual is None else usual, slot)

    def cut_short_counts_after(self, resolution: str) -> float:
        """Return the seconds from which a request that is cut short counts as a failure.

        Far beyond the usual latency a request would most likely have failed, too.
        """
        usual = self.usual_latency(resolution)
        share = _SHARE_OF_LIMIT * self.timeout
        return share if usual is None else min(FACTOR_OF_USUAL * usual, share)

    def snapshot(self, now: float) -> RouteSnapshot:
        """The route's breaker, queue and latest fallback, as plain JSON."""
        last = self.last_fallback
        found: RouteSnapshot = {
            "route": self.name,
            "provider": self.provider.name,
            "model": self.model,
            "off": None,
            "breaker": self.breaker.snapshot(),
            "queue": self.limiter.snapshot(),
            "usual_latency_s": {
                resolution: self.measured_latency(resolution) for resolution in self.latencies
            },
            "last_fallback": None
            if last is None
            else {"reason": str(last[1]), "seconds_ago": round(max(0.0, now - last[0]), 3)},
        }
        if self.step is not None:
            found["step"] = self.step
        return found

    def supports(self, option: str) -> bool:
        """Return whether provider and model support an option of the request."""
        if not supports(self.provider, option):
            return False
        return option in models.supported_options(self.vendor, self.model, (option,))

    @property
    def takes_references(self) -> bool:
        """Return whether requests may contain images, as edits do."""
        row = models.get_model(self.vendor, self.model)
        return row is None or row.max_references > 0

    @property
    def warms_up(self) -> bool:
        """Return whether the provider has something to build before its first request."""
        return hasattr(self.provider, "warm_up")

    async def warm_up(self) -> None:
        """Let the provider build what it needs."""
        warm_up = getattr(self.provider, "warm_up", None)
        if warm_up is not None and isawaitable(warming := warm_up()):
            await warming

    def usage(self, answer: ProviderResult, resolution: str) -> Usage:
        """Return the usage of an answer, with its price from the model table."""
        return priced_usage(
            answer.usage,
            provider=self.provider.name,
            model=self.model,
            resolution=resolution,
            response_model=answer.model,
        )

    def adapt_options(self, request: ImageRequest) -> AdaptedRequest:
        """Return the request with notes about what the model and the provider change."""
        best = models.downgraded_resolution(self.vendor, self.model, request.resolution)
        smaller = () if best is None else (f"{self.name} makes {best}, not {request.resolution}",)
        hints_for = getattr(self.provider, "prompt_hints_for", None)  # not every provider has it
        hints: PromptHints | None = None if hints_for is None else hints_for(request)
        return AdaptedRequest(
            request, notes=smaller if hints is None else (*smaller, *hints.notes), hints=hints
        )

    async def adapt_request(self, request: ImageRequest) -> AdaptedRequest:
        """Return the request within this model's limits of references and bytes."""
        adapted = self.adapt_options(request)
        info = models.get_model(self.vendor, self.model)
        references = request.references
        dropped: tuple[DroppedReference, ...] = ()
        notes: tuple[str, ...] = ()
        if info is not None and len(references) > info.max_references:
            dropped = tuple(
                DroppedReference(
                    index=reference.index,
                    why=f"{self.name} takes {info.max_references or 'no'} references",
                )
                for reference in references[info.max_references :]
            )
            references = references[: info.max_references]
        sizes = [len(reference.data) for reference in references]
        each = models.max_reference_bytes(self.vendor, self.model)
        most = self._max_total_bytes(info)
        if max(sizes, default=0) > each or sum(sizes) > most:
            from resilient_imagen.references.shrink import shrink_to_total

            references, notes = await shrink_to_total(references, most, max_bytes=each)
        if references is not request.references:
            mask = request.mask
            if mask is not None and references[0] is not request.references[0]:
                from resilient_imagen.references.masks import fit_mask

                mask = await fit_mask(mask, references[0])
            request = replace(request, references=references, mask=mask)
        return AdaptedRequest(request, dropped, (*notes, *adapted.notes), adapted.hints)

    def _max_total_bytes(self, info: models.ModelInfo | None) -> int:
        limits = (None if info is None else info.max_total_bytes, self.max_total_bytes)
        return min((limit for limit in limits if limit is not None), default=sys.maxsize)
