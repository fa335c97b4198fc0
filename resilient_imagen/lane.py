"""A route with everything that guards it: the provider, its queue, its breaker, its time limit."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from resilient_imagen import models

if TYPE_CHECKING:
    from resilient_imagen.breaker import Gate
    from resilient_imagen.limiter.memory import Pacer
    from resilient_imagen.providers.base import Provider, ProviderImage
    from resilient_imagen.reasons import Reason
    from resilient_imagen.request import ImageRequest
    from resilient_imagen.result import DroppedReference, Usage

__all__ = ["Lane"]


@dataclass(slots=True)
class Lane:
    """One ``provider:model``. The queue belongs to the provider, the breaker to the route."""

    provider: Provider
    model: str
    gate: Gate
    pacer: Pacer
    timeout: float
    """Seconds of wall clock per request."""
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    """Seconds that the latest successes took."""
    last_left: tuple[float, Reason] | None = None
    """When (loop time) and why a call last left this route for the next."""

    @property
    def name(self) -> str:
        """``provider:model``, as in IMAGE_GEN_ROUTES."""
        return f"{self.provider.name}:{self.model}"

    @property
    def base_url(self) -> str | None:
        """Where the provider sends requests, when it says so."""
        url = getattr(self.provider, "base_url", None)
        return url if isinstance(url, str) else None

    def rejects_at(self, when: float) -> bool:
        """Whether the breaker, as it stands, would refuse a caller at loop time ``when``."""
        until = self.gate.open_until()
        return until is not None and until > when

    def usual_latency(self) -> float | None:
        """Seconds a request usually takes, or None while nothing is known."""
        return median(self.latencies) if self.latencies else None

    def snapshot(self, now: float) -> dict[str, Any]:
        """The route's breaker, queue and latest fallback, as plain JSON."""
        last = self.last_left
        return {
            "route": self.name,
            "provider": self.provider.name,
            "model": self.model,
            "breaker": self.gate.snapshot(),
            "queue": self.pacer.snapshot(),
            "usual_latency_s": self.usual_latency(),
            "last_fallback": None
            if last is None
            else {"reason": str(last[1]), "seconds_ago": round(max(0.0, now - last[0]), 3)},
        }

    async def warm_up(self) -> None:
        """Let the provider build what it needs; not every provider has something to build."""
        warm_up = getattr(self.provider, "warm_up", None)
        if warm_up is not None:
            await warm_up()

    def usage(self, answer: ProviderImage, resolution: str) -> Usage:
        """What the answer used, with its price from the model table."""
        return {
            "provider": self.provider.name,
            "model": answer.model,
            "input_tokens": answer.input_tokens,
            "output_tokens": answer.output_tokens,
            "total_tokens": answer.total_tokens,
            "cost_usd": models.cost_usd(self.model, answer, resolution),
        }

    def tailored(self, request: ImageRequest) -> tuple[ImageRequest, tuple[DroppedReference, ...]]:
        """The request as this model takes it, and the references beyond its limit."""
        info = models.find(self.model)
        limit = models.max_references(self.provider.name) if info is None else info.max_references
        if limit is None or len(request.references) <= limit:
            return request, ()
        kept, beyond = request.references[:limit], request.references[limit:]
        why = f"{self.name} takes {limit} references"
        dropped: tuple[DroppedReference, ...] = tuple(
            {"index": reference.index, "why": why} for reference in beyond
        )
        return replace(request, references=kept), dropped
