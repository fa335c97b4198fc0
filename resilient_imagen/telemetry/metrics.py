"""Metrics: counts and durations of events. Instruments and gauges are in ``instruments``.

Attributes come from short lists: reasons, outcomes, configured routes. A model that only a caller
named is ``other``; prompts, ids and messages are never an attribute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from opentelemetry import metrics, trace
from opentelemetry.context import Context

from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry import attributes, events, names
from resilient_imagen.telemetry.instruments import instruments
from resilient_imagen.telemetry.sanitize import safe_name
from resilient_imagen.telemetry.sink import SelectiveSink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.metrics import Counter, MeterProvider

    from resilient_imagen.circuitbreaker import CircuitBreaker

__all__ = ["MetricSink"]

_REASONS: Final = frozenset(str(reason) for reason in Reason)

_OF_NO_SPAN: Final = trace.set_span_in_context(trace.INVALID_SPAN, Context())
"""For all metrics but durations, because an exemplar, which links to a trace, costs time."""

_MAX_ANSWERING: Final = 32
"""Maximum number of distinct response model names exported as attribute values."""


class MetricSink(SelectiveSink):
    """Turns events into metrics.

    Args:
        meter_provider: The global one when None, also if it is set later.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        self._to = instruments(meter_provider)
        self._provider = meter_provider
        self._live = not _is_no_op(meter_provider or metrics.get_meter_provider())
        """Whether the application had set a meter provider when the latest call began."""
        self._configured: set[str] = set()
        self._breakers: WeakSet[CircuitBreaker] = WeakSet()
        self._response_models: set[str] = set()
        self._handlers: Mapping[type[events.Event], Callable[[Any], None]] = {
            events.RequestStarted: self._request_started,
            events.RouteRegistered: self._route_added,
            events.AttemptStarted: self._attempt_started,
            events.AttemptEnded: self._attempt_ended,
            events.RetryScheduled: self._retry_scheduled,
            events.RouteFallback: self._route_fallback,
            events.ShortCircuited: self._short_circuited,
            events.BreakerChanged: self._breaker_changed,
            events.CandidateDisagreed: self._shadow_differed,
            events.RequestEnded: self._request_ended,
        }

    def handler_of(self, kind: type[events.Event]) -> Callable[[Any], None] | None:
        """Return the method that records events of a type, or None."""
        if kind in {events.RequestStarted, events.RouteRegistered}:
            return self._handlers[kind]
        return self._record if kind in self._handlers else None

    def _record(self, event: events.Event) -> None:
        if self._live:
            self._handlers[type(event)](event)

    def _request_started(self, _: events.RequestStarted) -> None:
        if not self._live:
            self._live = not _is_no_op(self._provider or metrics.get_meter_provider())

    def client_closed(self) -> None:
        """Remove the client's breakers from the gauges."""
        for breaker in self._breakers:
            self._to.forget(breaker)

    def _bounded(self, provider: str, model: str) -> str:
        """Return the model's name if a route was configured for it, else `other`."""
        return model if f"{provider}:{model}" in self._configured else names.OTHER

    def _bounded_route(self, route: str) -> str:
        provider, _, model = route.partition(":")
        return f"{provider}:{self._bounded(provider, model)}"

    def _route_added(self, event: events.RouteRegistered) -> None:
        if event.configured:
            self._configured.add(f"{event.provider}:{event.model}")
        self._breakers.add(event.breaker)
        self._to.watch(
            event.breaker, f"{event.provider}:{self._bounded(event.provider, event.model)}"
        )

    def _attempt_started(self, event: events.AttemptStarted) -> None:
        if event.overlap is not None:
            gen_ai = attributes.conventional_provider(event)
            _count(self._to.hedges, {names.HEDGED: event.overlap, names.GEN_AI_PROVIDER: gen_ai})

    def _attempt_ended(self, event: events.AttemptEnded) -> None:
        model = self._bounded(event.provider, event.model)
        common = dict(attributes.route(event.provider, model, event.base_url, event.telemetry_name))
        if event.response_model is not None:
            common[names.GEN_AI_RESPONSE_MODEL] = self._bounded_response_model(event.response_model)
        if event.usage is not None:
            self._count_tokens(common, "input", event.usage["input_tokens"])
            self._count_tokens(common, "output", event.usage["output_tokens"])
            if (cost := event.usage["cost_usd"]) is not None:
                paid = {names.PROVIDER: event.provider, names.MODEL: model}
                self._to.cost.add(cost, paid, _OF_NO_SPAN)
        error = attributes.attempt_error(event)
        if error is not None:
            common[names.ERROR_TYPE] = _listed(error)
        self._to.client_duration.record(event.latency_s, common)
        _count(
            self._to.breaker_calls,
            {
                names.CIRCUIT_BREAKER_NAME: f"{event.provider}:{model}",
                names.CIRCUIT_BREAKER_RESULT: (
                    "slow" if event.counted == "slow" else attributes.verdict(event)
                ),
            },
        )

    def _bounded_response_model(self, model: str) -> str:
        """Return the response model, or `other` once there are too many distinct ones."""
        if model not in self._response_models and len(self._response_models) < _MAX_ANSWERING:
            self._response_models.add(model)
        return safe_name(model) if model in self._response_models else names.OTHER

    def _count_tokens(self, common: Mapping[str, str | int], kind: str, count: int | None) -> None:
        if count is not None:
            self._to.client_tokens.record(
                count, {**common, names.GEN_AI_TOKEN_TYPE: kind}, _OF_NO_SPAN
            )

    def _retry_scheduled(self, event: events.RetryScheduled) -> None:
        gen_ai = attributes.conventional_provider(event)
        _count(
            self._to.retries,
            {names.GEN_AI_PROVIDER: gen_ai, names.ERROR_TYPE: str(event.reason)},
        )

    def _route_fallback(self, event: events.RouteFallback) -> None:
        _count(
            self._to.fallbacks,
            {
                names.FALLBACK_FROM: self._bounded_route(event.from_route),
                names.FALLBACK_TO: self._bounded_route(event.to_route),
                names.FALLBACK_CAUSE: str(event.cause),
            },
        )

    def _short_circuited(self, event: events.ShortCircuited) -> None:
        name = f"{event.provider}:{self._bounded(event.provider, event.model)}"
        _count(
            self._to.breaker_calls,
            {names.CIRCUIT_BREAKER_NAME: name, names.CIRCUIT_BREAKER_RESULT: names.NOT_PERMITTED},
        )

    def _breaker_changed(self, event: events.BreakerChanged) -> None:
        change = event.transition
        if change.shadow:
            return
        _count(
            self._to.breaker_transitions,
            {
                names.CIRCUIT_BREAKER_NAME: self._bounded_route(change.name),
                names.CIRCUIT_BREAKER_FROM: change.from_state.value,
                names.CIRCUIT_BREAKER_TO: change.to_state.value,
            },
        )

    def _shadow_differed(self, event: events.CandidateDisagreed) -> None:
        name = f"{event.provider}:{self._bounded(event.provider, event.model)}"
        found = {names.CIRCUIT_BREAKER_NAME: name, names.SHADOW_WOULD: event.would}
        if event.reason is not None:
            found[names.ERROR_TYPE] = str(event.reason)
        _count(self._to.shadow, found)

    def _request_ended(self, event: events.RequestEnded) -> None:
        short = {names.OPERATION: event.operation, names.OUTCOME: event.outcome}
        self._to.attempts.record(event.attempts, short, _OF_NO_SPAN)
        self._to.queue.record(event.queue_s, short, _OF_NO_SPAN)
        whole: dict[str, str | bool] = {
            **short,
            names.FALLBACK_USED: event.fallback_cause is not None,
        }
        if event.result is not None:
            whole[names.PROVIDER_SERVED] = event.result.provider
        error = attributes.request_error(event)
        if error is not None:
            whole[names.ERROR_TYPE] = _listed(error)
        self._to.duration.record(event.latency_s, whole)


def _is_no_op(provider: MeterProvider) -> bool:
    """Return whether a provider is one of OpenTelemetry's API, which records nothing."""
    return type(provider).__module__.startswith("opentelemetry.metrics")


def _count(counter: Counter, labels: Mapping[str, str | int]) -> None:
    counter.add(1, labels, _OF_NO_SPAN)


def _listed(error: str) -> str:
    return error if error in _REASONS else names.OTHER_ERROR
