"""Spans: one trace per call, one span per request sent, one per rejection by a breaker.

A call's root span is current in the caller's task during the call, and a request's span during the
provider's work: spans of others (HTTP spans, the caller's own) become their children.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, StatusCode

from resilient_imagen.effective_settings import DEFAULTS, as_text, changed_from_defaults
from resilient_imagen.providers.genai_compat import as_inference_span
from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry import attributes, events, names
from resilient_imagen.telemetry.sanitize import safe
from resilient_imagen.telemetry.sink import SelectiveSink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, TracerProvider

__all__ = ["SpanSink"]

_OWNER: Final = otel_context.create_key("resilient_imagen.telemetry.owner")
"""Key of the trace or request that made a context current."""
_MAX_OPENERS: Final = 64
"""Maximum number of routes whose opening attempt is remembered; three are usual."""
_MAX_PROMPT: Final = 4000
"""Maximum characters of a captured prompt."""

_MOMENT: Final = 1000
"""Duration of a rejection's span in nanoseconds: Jaeger reports zero as an error."""


class _Trace:
    """The open root span of one call."""

    __slots__ = ("context", "offset", "prompt", "reject", "root", "token")

    def __init__(self, root: Span, offset: int, prompt: str | None) -> None:
        self.root = root
        self.offset = offset
        """Nanoseconds between the epoch and the zero of loop time."""
        self.prompt = prompt
        self.context: Context = otel_context.set_value(
            _OWNER, self, trace.set_span_in_context(root)
        )
        """The context in which the root is the current span."""
        self.token: Token[Context] = otel_context.attach(self.context)
        self.reject: SpanContext | None = None
        """The span of the latest rejection."""

    def ns(self, at: float) -> int:
        """Convert a loop time to nanoseconds since the epoch."""
        return self.offset + int(at * 1e9)


class _Request:
    """The open span of one request. It may end after the root span of its call."""

    __slots__ = ("call", "sent", "span", "token")

    def __init__(self, call: _Trace, sent: events.AttemptStarted, span: Span) -> None:
        self.call = call
        self.sent = sent
        self.span = span
        current = otel_context.set_value(_OWNER, self, trace.set_span_in_context(span))
        self.token: Token[Context] = otel_context.attach(as_inference_span(current))

    @property
    def route(self) -> str:
        """Return its route, as provider:model."""
        return f"{self.sent.provider}:{self.sent.model}"


class SpanSink(SelectiveSink):
    """Turns events into spans.

    Args:
        tracer_provider: The global one when None, also if it is set later.
        capture_content: Record prompts, as sent, on attempt spans. Images never are.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, *, capture_content: bool = False
    ) -> None:
        self._tracer = trace.get_tracer(names.SCOPE, version(names.DISTRIBUTION), tracer_provider)
        self._capture_content = capture_content
        self._traces: dict[str, _Trace] = {}
        """Traces of the calls in flight, by id. Every call ends, even if its task is dropped."""
        self._requests: dict[int, _Request] = {}
        """Requests in flight, by the identity of the event about their start."""
        self._openers: OrderedDict[str, SpanContext] = OrderedDict()
        self._settings: attributes.Attributes = {}
        """The attribute about the settings in effect, once they are known."""
        self._handlers: Mapping[type[events.Event], Callable[[Any], None]] = {
            events.RequestStarted: self._request_started,
            events.ReferencesChanged: self._references_changed,
            events.AttemptStarted: self._attempt_started,
            events.AttemptEnded: self._attempt_ended,
            events.RetryScheduled: self._retry_scheduled,
            events.RouteFallback: self._route_changed,
            events.AccountChanged: self._route_changed,
            events.ShortCircuited: self._short_circuited,
            events.BreakerChanged: self._breaker_changed,
            events.RequestEnded: self._request_ended,
            events.SettingsReported: self._settings_reported,
        }

    def handler_of(self, kind: type[events.Event]) -> Callable[[Any], None] | None:
        """Return the method that starts, enriches or ends a span at events of a type, or None."""
        return self._handlers.get(kind)

    def span_of(self, event: events.Event) -> SpanContext:
        """Return the span that an event is about.

        It is the current span, except for the end of a request, for a rejection, which has a span
        without children, and for an opening, which may be detected while another span is current.
        """
        if isinstance(event, events.AttemptEnded):
            request = self._requests.get(id(event.sent))
            if request is not None:
                return request.span.get_span_context()
        if isinstance(event, events.ShortCircuited):
            opened = self._traces.get(event.call_id)
            if opened is not None and opened.reject is not None:
                return opened.reject
        if isinstance(event, events.BreakerChanged) and _opens(event):
            return self._openers.get(event.transition.name, trace.INVALID_SPAN_CONTEXT)
        return trace.get_current_span().get_span_context()

    # -- the call -----------------------------------------------------------------------------

    def _request_started(self, event: events.RequestStarted) -> None:
        offset = time.time_ns() - int(event.at * 1e9)
        root = self._tracer.start_span(
            names.PREFIX + event.request.operation,
            attributes={**attributes.of_request_start(event), **self._settings},
            start_time=offset + int(event.at * 1e9),
        )
        if not root.get_span_context().is_valid:
            return  # there is no tracer provider, and no span of the caller
        prompt = event.request.prompt if self._capture_content else None
        self._traces[event.call_id] = _Trace(root, offset, prompt)

    def _settings_reported(self, event: events.SettingsReported) -> None:
        changed = as_text(changed_from_defaults(event.variables))
        self._settings = {names.SETTINGS: changed or DEFAULTS}

    def _references_changed(self, event: events.ReferencesChanged) -> None:
        self._note(
            event,
            names.REFERENCES_CHANGED,
            {names.EVENT_DROPPED: len(event.dropped), names.EVENT_NOTES: len(event.notes)},
        )

    def _retry_scheduled(self, event: events.RetryScheduled) -> None:
        self._note(
            event,
            names.RETRY_SCHEDULED,
            {
                names.EVENT_PROVIDER: event.provider,
                names.EVENT_CAUSE: str(event.reason),
                names.EVENT_BACKOFF: round(event.delay_s, 3),
                names.EVENT_HINTED: event.hinted,
            },
        )

    def _route_changed(self, event: events.RouteFallback | events.AccountChanged) -> None:
        details: attributes.Attributes = {
            names.EVENT_FROM: event.from_route,
            names.EVENT_TO: event.to_route,
            names.EVENT_CAUSE: str(event.cause),
        }
        if event.hedged is not None:
            details[names.EVENT_HEDGED] = event.hedged
        fell_back = isinstance(event, events.RouteFallback)
        self._note(event, names.FALLBACK if fell_back else names.ACCOUNT_CHANGED, details)

    def _note(self, event: events.Event, name: str, details: attributes.Attributes) -> None:
        opened = self._traces.get(event.call_id)
        if opened is not None:
            opened.root.add_event(name, details, opened.ns(event.at))

    def _request_ended(self, event: events.RequestEnded) -> None:
        opened = self._traces.pop(event.call_id, None)
        if opened is None:
            return
        if opened.root.is_recording():
            opened.root.set_attributes(attributes.of_request_end(event))
            if event.outcome in {"error", "deadline"}:
                opened.root.set_status(StatusCode.ERROR, safe(event.error or event.error_type))
        opened.root.end(opened.ns(event.at))
        _detach(opened)

    # -- one request --------------------------------------------------------------------------

    def _attempt_started(self, event: events.AttemptStarted) -> None:
        opened = self._traces.get(event.call_id)
        if opened is None:
            return
        found = attributes.of_attempt(event)
        if opened.prompt is not None:
            hints = event.prompt_hints
            prompt = opened.prompt if hints is None else hints.added_to(opened.prompt)
            found = {**found, names.GEN_AI_INPUT_MESSAGES: _messages(prompt)}
        span = self._tracer.start_span(
            f"{names.GENERATE_CONTENT} {event.model}",
            opened.context,
            SpanKind.CLIENT,
            found,
            start_time=opened.ns(event.at),
        )
        self._requests[id(event)] = _Request(opened, event, span)

    def _attempt_ended(self, event: events.AttemptEnded) -> None:
        request = self._requests.pop(id(event.sent), None)
        if request is None:
            return
        span, ns = request.span, request.call.ns
        if span.is_recording():
            self._describe(span, event, ns(event.at))
        span.end(ns(event.sent.at + event.latency_s))
        _detach(request)

    @staticmethod
    def _describe(span: Span, event: events.AttemptEnded, now: int) -> None:
        span.set_attributes(attributes.of_attempt_end(event))
        if attributes.attempt_error(event) is None or event.reason is Reason.CANCELLED:
            return  # a success, or cancelled by its caller or by another route's image
        span.set_status(StatusCode.ERROR)
        details = {names.EXCEPTION_TYPE: event.error_type or ""}
        if event.vendor_message is not None:
            details[names.EXCEPTION_MESSAGE] = safe(event.vendor_message)
        span.add_event(names.EXCEPTION_EVENT, details, now)

    # -- the breaker --------------------------------------------------------------------------

    def _short_circuited(self, event: events.ShortCircuited) -> None:
        opened = self._traces.get(event.call_id)
        if opened is None:
            return
        opener = self._openers.get(f"{event.provider}:{event.model}")
        now = opened.ns(event.at)
        span = self._tracer.start_span(
            f"{names.REJECT_SPAN} {event.provider}",
            opened.context,
            attributes=attributes.of_reject(event),
            links=() if opener is None else (Link(opener),),
            start_time=now,
        )
        span.set_status(StatusCode.ERROR)
        span.end(now + _MOMENT)
        opened.reject = span.get_span_context()

    def _breaker_changed(self, event: events.BreakerChanged) -> None:
        """Remember the request that opened a breaker, on the same route or a sibling."""
        if not _opens(event):
            return
        change = event.transition
        request = self._requests.get(id(change.origin))
        if request is None:
            # No request caused this opening: drop the old link rather than point to an unrelated
            # span.
            self._openers.pop(change.name, None)
            return
        self._remember(change.name, request.span.get_span_context())
        if request.route == change.name:  # its own end may come too late to report it
            request.span.set_attribute(
                names.CIRCUIT_BREAKER_TRANSITION, f"{change.from_state.value}_to_open"
            )

    def _remember(self, name: str, opener: SpanContext) -> None:
        self._openers[name] = opener
        self._openers.move_to_end(name)
        if len(self._openers) > _MAX_OPENERS:
            self._openers.popitem(last=False)


def _opens(event: events.BreakerChanged) -> bool:
    """Return whether a breaker opened because of failures, and not in shadow mode."""
    return event.transition.to_state.value == "open" and not event.transition.shadow


def _detach(owner: _Trace | _Request) -> None:
    """Restore the context from before ``owner`` made its own current, unless another one is."""
    if otel_context.get_value(_OWNER) is owner:
        otel_context.detach(owner.token)


def _messages(prompt: str) -> str:
    """Return the prompt in the format of gen_ai.input.messages."""
    part = {"type": "text", "content": safe(prompt, _MAX_PROMPT)}
    return json.dumps([{"role": "user", "parts": [part]}], ensure_ascii=False)
