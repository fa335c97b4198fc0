"""Metrics: counters and histograms from events, gauges from the breakers themselves.

Attributes come from short lists: reasons, outcomes, configured routes. A model that only a caller
named is ``other``; prompts, ids and texts are never an attribute.
"""

from __future__ import annotations

import logging
import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Observation

from resilient_imagen.breaker import BreakerState
from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry import attributes, events, names
from resilient_imagen.telemetry.outgoing import is_silent, safe_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.metrics import CallbackOptions, Counter, Meter, MeterProvider

    from resilient_imagen.breaker import BreakerNumbers, Gate

__all__ = ["MetricSink"]

_REASONS: Final = frozenset(str(reason) for reason in Reason)

# The conventions' own buckets for model calls and tokens; ours for whole calls, in seconds.
_INFERENCE_S: Final = [0.01 * 2**power for power in range(14)]
_TOKENS: Final = [4**power for power in range(14)]
_CALL_S: Final = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300]
_ATTEMPTS: Final = [1, 2, 3, 4, 5, 6, 8, 10]

_OF_NO_SPAN: Final = trace.set_span_in_context(trace.INVALID_SPAN, Context())
"""For numbers by which nobody looks for a trace: exemplars, which durations have, are not free."""

_MAX_ANSWERING: Final = 32
"""Names of models, as vendors tell them, that are told on."""
_WORST_FIRST: Final = (
    BreakerState.OPEN,
    BreakerState.FORCED_OPEN,
    BreakerState.HALF_OPEN,
    BreakerState.CLOSED,
)


class MetricSink:
    """Turns events into metrics.

    Args:
        meter_provider: The global one when None, also if it is set later.
    """

    inline = True

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        self._to = _instruments(meter_provider)
        self._live = meter_provider is not None
        self._configured: set[str] = set()
        self._gates: list[Gate] = []
        self._answering: set[str] = set()
        self._handlers: Mapping[type[events.Event], Callable[[Any], None]] = {
            events.RouteAdded: self._route_added,
            events.AttemptEnded: self._attempt_ended,
            events.RetryScheduled: self._retry_scheduled,
            events.FellBack: self._fell_back,
            events.ShortCircuited: self._short_circuited,
            events.BreakerChanged: self._breaker_changed,
            events.ShadowDiffered: self._shadow_differed,
            events.RequestEnded: self._request_ended,
        }

    def told_from(self) -> float:
        """What ends or goes another way, if anybody counts; else nothing."""
        if not self._live:
            self._live = not is_silent(metrics.get_meter_provider())
        return logging.INFO if self._live else math.inf

    def handle(self, event: events.Event) -> None:
        """Count it."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def client_closed(self) -> None:
        """Its breakers guard nothing any more: gauges are silent about them."""
        for gate in self._gates:
            self._to.gates.discard(gate)

    def _bounded(self, provider: str, model: str) -> str:
        """The model's name, if a route was configured for it."""
        return model if f"{provider}:{model}" in self._configured else names.OTHER

    def _bounded_route(self, route: str) -> str:
        provider, _, model = route.partition(":")
        return f"{provider}:{self._bounded(provider, model)}"

    def _route_added(self, event: events.RouteAdded) -> None:
        if event.configured:
            self._configured.add(f"{event.provider}:{event.model}")
            self._gates.append(event.gate)
            self._to.gates.add(event.gate)

    def _attempt_ended(self, event: events.AttemptEnded) -> None:
        model = self._bounded(event.provider, event.model)
        common = dict(attributes.route(event.provider, model, event.base_url))
        if event.response_model is not None:
            common[names.GEN_AI_RESPONSE_MODEL] = self._answered_by(event.response_model)
        if event.usage is not None:
            self._count_tokens(common, "input", event.usage["input_tokens"])
            self._count_tokens(common, "output", event.usage["output_tokens"])
        error = attributes.attempt_error(event)
        if error is not None:
            common[names.ERROR_TYPE] = _listed(error)
        self._to.client_duration.record(event.latency_s, common)
        _count(
            self._to.breaker_calls,
            {
                names.BREAKER_NAME: f"{event.provider}:{model}",
                names.BREAKER_RESULT: (
                    "slow" if event.counted == "slow" else attributes.verdict(event)
                ),
            },
        )

    def _answered_by(self, model: str) -> str:
        """The model's name as the vendor tells it; only so many of them, whatever it tells."""
        if model not in self._answering and len(self._answering) < _MAX_ANSWERING:
            self._answering.add(model)
        return safe_name(model) if model in self._answering else names.OTHER

    def _count_tokens(self, common: Mapping[str, str | int], kind: str, count: int | None) -> None:
        if count is not None:
            self._to.client_tokens.record(
                count, {**common, names.GEN_AI_TOKEN_TYPE: kind}, _OF_NO_SPAN
            )

    def _retry_scheduled(self, event: events.RetryScheduled) -> None:
        gen_ai = attributes.route(event.provider, "", event.base_url)[names.GEN_AI_PROVIDER]
        _count(
            self._to.retries,
            {names.GEN_AI_PROVIDER: gen_ai, names.ERROR_TYPE: str(event.reason)},
        )

    def _fell_back(self, event: events.FellBack) -> None:
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
            {names.BREAKER_NAME: name, names.BREAKER_RESULT: names.NOT_PERMITTED},
        )

    def _breaker_changed(self, event: events.BreakerChanged) -> None:
        change = event.transition
        if change.shadow:
            return
        _count(
            self._to.breaker_transitions,
            {
                names.BREAKER_NAME: self._bounded_route(change.name),
                names.BREAKER_FROM: change.from_state.value,
                names.BREAKER_TO: change.to_state.value,
            },
        )

    def _shadow_differed(self, event: events.ShadowDiffered) -> None:
        name = f"{event.provider}:{self._bounded(event.provider, event.model)}"
        found = {names.BREAKER_NAME: name, names.SHADOW_WOULD: event.would}
        if event.reason is not None:
            found[names.ERROR_TYPE] = str(event.reason)
        _count(self._to.shadow, found)

    def _request_ended(self, event: events.RequestEnded) -> None:
        short = {names.OPERATION: event.operation, names.OUTCOME: event.outcome}
        self._to.attempts.record(event.attempts, short, _OF_NO_SPAN)
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


def _count(counter: Counter, labels: Mapping[str, str | int]) -> None:
    counter.add(1, labels, _OF_NO_SPAN)


def _listed(error: str) -> str:
    return error if error in _REASONS else names.OTHER_ERROR


class _Instruments:
    """All instruments of one meter, and the breakers that its gauges look at."""

    def __init__(self, meter: Meter) -> None:
        self.gates: WeakSet[Gate] = WeakSet()
        self.client_duration = meter.create_histogram(
            names.CLIENT_DURATION,
            "s",
            "Duration of one request to a model.",
            explicit_bucket_boundaries_advisory=_INFERENCE_S,
        )
        self.client_tokens = meter.create_histogram(
            names.CLIENT_TOKENS,
            "{token}",
            "Tokens used by one request.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self.duration = meter.create_histogram(
            names.OPERATION_DURATION,
            "s",
            "Duration of a whole call: queueing, retries and fallback included.",
            explicit_bucket_boundaries_advisory=_CALL_S,
        )
        self.attempts = meter.create_histogram(
            names.OPERATION_ATTEMPTS,
            "{attempt}",
            "Requests sent for one call.",
            explicit_bucket_boundaries_advisory=_ATTEMPTS,
        )
        self.retries = meter.create_counter(
            names.RETRY_COUNT, "{retry}", "Retries of the same route, by what went wrong."
        )
        self.fallbacks = meter.create_counter(
            names.FALLBACK_COUNT, "{fallback}", "Routes left for the next one, by cause."
        )
        self.breaker_calls = meter.create_counter(
            names.BREAKER_CALLS, "{call}", "What the breaker made of each request."
        )
        self.breaker_transitions = meter.create_counter(
            names.BREAKER_TRANSITIONS, "{transition}", "Changes of a breaker's state."
        )
        self.shadow = meter.create_counter(
            names.SHADOW_COUNT, "{call}", "Requests on which candidate settings differ."
        )
        meter.create_observable_gauge(
            names.BREAKER_STATE_GAUGE, [self._states], "1", "1 for the present state, 0 for others."
        )
        meter.create_observable_gauge(
            names.BREAKER_RATE_GAUGE, [self._rates], "1", "Failed share of the window's calls."
        )
        meter.create_observable_gauge(
            names.BREAKER_WINDOW_GAUGE, [self._windows], "{call}", "Calls in the window."
        )

    def _numbers(self) -> Mapping[str, list[BreakerNumbers]]:
        """By route: of every client that has it."""
        found: dict[str, list[BreakerNumbers]] = {}
        for gate in list(self.gates):
            found.setdefault(gate.name, []).append(gate.numbers())
        return found

    def _states(self, _options: CallbackOptions) -> Iterable[Observation]:
        """One route has one state, and that is the worst of its clients'."""
        for name, clients in self._numbers().items():
            worst = min((numbers.state for numbers in clients), key=_WORST_FIRST.index)
            for state in _WORST_FIRST:
                yield Observation(
                    int(state is worst),
                    {names.BREAKER_NAME: name, names.BREAKER_STATE: state.value},
                )

    def _rates(self, _options: CallbackOptions) -> Iterable[Observation]:
        for name, clients in self._numbers().items():
            rate = max(numbers.failure_rate for numbers in clients)
            yield Observation(rate, {names.BREAKER_NAME: name})

    def _windows(self, _options: CallbackOptions) -> Iterable[Observation]:
        for name, clients in self._numbers().items():
            calls = sum(numbers.window_calls for numbers in clients)
            yield Observation(calls, {names.BREAKER_NAME: name})


_per_meter: WeakKeyDictionary[Meter, _Instruments] = WeakKeyDictionary()
_global: list[Meter] = []
"""The global provider's meter, once it was asked for: the API makes a new proxy at each asking."""


def _instruments(provider: MeterProvider | None) -> _Instruments:
    """The meter's instruments: one set, however many clients there are."""
    if provider is None or provider is metrics.get_meter_provider():
        if not _global:
            _global.append(metrics.get_meter(names.SCOPE, version(names.DISTRIBUTION)))
        meter = _global[0]
    else:
        meter = provider.get_meter(names.SCOPE, version(names.DISTRIBUTION))
    if meter not in _per_meter:
        _per_meter[meter] = _Instruments(meter)
    return _per_meter[meter]
