"""Candidate breaker settings: evaluated beside the live ones on the same calls, without effect."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from resilient_imagen.circuitbreaker import BreakerState, Rejection
from resilient_imagen.pipeline.route_factory import new_breaker
from resilient_imagen.reasons import POLICIES, BreakerOutcome, Reason
from resilient_imagen.telemetry import events

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker import CircuitBreaker, Permit, Transition
    from resilient_imagen.settings import Settings
    from resilient_imagen.snapshots import ShadowSnapshot
    from resilient_imagen.telemetry.dispatcher import SinkDispatcher

__all__ = ["CandidateEvaluator"]

_TRIPS = frozenset(
    str(reason) for reason, policy in POLICIES.items() if policy.verdict is BreakerOutcome.TRIP
)


class CandidateEvaluator:
    """A sink that runs a candidate breaker for each configured route, fed by the same outcomes.

    Differences are emitted as events, and so appear in metrics and log lines: the candidate's state
    changes (with ``transition.shadow``), each request that it would have rejected, and each request
    that it would have allowed although the live breaker rejected it. A closed candidate would allow
    every request, an open or half-open one only its probes. While the live breaker is open, both
    breakers see only the outcomes of the live breaker's probes.

    Args:
        settings: The live settings; ``settings.shadow`` has the candidate's differences.
    """

    inline = True

    def __init__(self, settings: Settings) -> None:
        changes = settings.shadow or {}
        self._settings = settings.model_copy(
            update={
                "breaker_mode": "on",
                **{f"breaker_{name}": value for name, value in changes.items()},
                "providers": {
                    name: provider.model_copy(
                        update={"breaker": {**(provider.breaker or {}), **changes}}
                    )
                    for name, provider in settings.providers.items()
                },
            }
        )
        self._dispatcher: SinkDispatcher | None = None
        self._breakers: dict[str, CircuitBreaker] = {}
        self._permits: dict[tuple[str, str], Permit | None] = {}
        self._disagreements: Counter[str] = Counter()
        self._probes: Counter[str] = Counter()
        """Number of probes that each candidate would have sent in its present state."""

    def emit_to(self, dispatcher: SinkDispatcher) -> None:
        """Emit events to this dispatcher."""
        self._dispatcher = dispatcher

    def handle(self, event: events.Event) -> None:
        """Apply an event to the candidate of its route."""
        match event:
            case events.RouteRegistered(configured=True):
                self._add(event)
            case events.AttemptStarted():
                self._started(event)
            case events.AttemptEnded():
                self._ended(event)
            case events.ShortCircuited():
                breaker = self._breakers.get(f"{event.provider}:{event.model}")
                if breaker is not None and self._would_allow(breaker):
                    self._disagree(event, "allow")
            case events.BreakerChanged():
                self._live_changed(event.transition)

    def snapshot(self) -> ShadowSnapshot:
        """Return each candidate's breaker and the number of disagreements, as plain JSON."""
        return {
            "settings": dict(self._settings.shadow or {}),
            "would_reject": self._disagreements["reject"],
            "would_allow": self._disagreements["allow"],
            "routes": [breaker.snapshot() for breaker in self._breakers.values()],
        }

    def _add(self, event: events.RouteRegistered) -> None:
        breaker = new_breaker(self._settings, event.provider, event.model)
        breaker.subscribe(self._changed, inline=True)
        self._breakers[breaker.name] = breaker

    def _started(self, event: events.AttemptStarted) -> None:
        breaker = self._breakers.get(f"{event.provider}:{event.model}")
        if breaker is None:
            return
        answer = breaker.acquire()
        permit = None if isinstance(answer, Rejection) else answer
        if permit is not None:
            permit.begin()
        self._permits[event.call_id, breaker.name] = permit

    def _ended(self, event: events.AttemptEnded) -> None:
        key = event.call_id, f"{event.provider}:{event.model}"
        if key not in self._permits:
            return
        permit = self._permits.pop(key)
        if permit is None:
            self._disagree(event, "reject")
        else:
            cause = Reason.TIMEOUT if event.cut_short else event.reason
            permit.settle(event.vote, cause=cause, retry_after=event.retry_after)
            if event.vote is BreakerOutcome.TRIP:  # `_live_changed` may have made the permit stale
                self._breakers[key[1]].force_trip(cause=event.reason, retry_after=event.retry_after)

    def _would_allow(self, breaker: CircuitBreaker) -> bool:
        """Return whether the candidate would allow a call that the live breaker rejected.

        A candidate's probe has no known outcome, so the candidate stays due until the live breaker
        sends a probe.
        """
        if not breaker.allows_calls():
            return False
        if breaker.metrics().state is BreakerState.CLOSED:
            return True
        self._probes[breaker.name] += 1
        return self._probes[breaker.name] <= self._settings.breaker_half_open_calls

    def _live_changed(self, change: Transition) -> None:
        """Trip the candidate if the live breaker opened for a fatal reason.

        An account-wide failure opens the account's other routes without a request of theirs. The
        route that sent the request is tripped here, too; its hint follows when the request ends.
        """
        breaker = self._breakers.get(change.name)
        if breaker is None or change.shadow or change.to_state is not BreakerState.OPEN:
            return
        if change.cause in _TRIPS:
            breaker.force_trip(cause=change.cause, summary=change.summary)

    def _disagree(self, event: events.AttemptEnded | events.ShortCircuited, would: str) -> None:
        self._disagreements[would] += 1
        if self._dispatcher is None:
            return
        sent = event if isinstance(event, events.AttemptEnded) else None
        self._dispatcher.emit(
            events.CandidateDisagreed(
                at=event.at,
                call_id=event.call_id,
                provider=event.provider,
                model=event.model,
                would=would,
                reason=None if sent is None else sent.reason,
                latency_s=None if sent is None else sent.latency_s,
            )
        )

    def _changed(self, transition: Transition) -> None:
        del self._probes[transition.name]
        if self._dispatcher is not None:
            self._dispatcher.emit(
                events.BreakerChanged(at=transition.at, transition=replace(transition, shadow=True))
            )
