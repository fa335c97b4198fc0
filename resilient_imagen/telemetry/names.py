"""All exported names of spans, attributes, metrics and log records.

The ``gen_ai`` names follow OpenTelemetry's conventions for generative AI. Those are in development
and have moved between packages, so the constants are defined here.
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "resilient_imagen"
"""Instrumentation scope of our tracer and meter."""
DISTRIBUTION: Final = "resilient-imagen"
"""Whose version the scope has."""
PREFIX: Final = "imagegen."
"""Of our own names. Log keys are span attributes without it."""

# -- OpenTelemetry's ------------------------------------------------------------------------------

ERROR_TYPE: Final = "error.type"
SUCCESS: Final = "success"
OTHER_ERROR: Final = "_OTHER"
"""The conventions' word for an error type that is not in a fixed list."""
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
EXCEPTION_EVENT: Final = "exception"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"

GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GENERATE_CONTENT: Final = "generate_content"
"""The conventions' operation for multimodal content, edits included; there is none for images."""
GEN_AI_PROVIDER: Final = "gen_ai.provider.name"
GEN_AI_OUTPUT_TYPE: Final = "gen_ai.output.type"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_INPUT_MESSAGES: Final = "gen_ai.input.messages"
GEN_AI_TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - tokens of text, no password

# -- spans ----------------------------------------------------------------------------------------

REJECT_SPAN: Final = "circuit_breaker reject"
"""Followed by the provider's name."""

# The call, on its root span: all values that one search may combine, because Jaeger matches all
# tags of a search on one span.
OPERATION: Final = "imagegen.operation"
CALL_ID: Final = "imagegen.call_id"
PROVIDER_PRIMARY: Final = "imagegen.provider.primary"
PROVIDER_SERVED: Final = "imagegen.provider.served"
MODEL_SERVED: Final = "imagegen.model.served"
OUTCOME: Final = "imagegen.outcome"
FALLBACK_USED: Final = "imagegen.fallback.used"
FALLBACK_CAUSE: Final = "imagegen.fallback.cause"
FALLBACK_FROM: Final = "imagegen.fallback.from"
FALLBACK_TO: Final = "imagegen.fallback.to"
ATTEMPTS: Final = "imagegen.attempts"
RETRIES: Final = "imagegen.retries"
SHORT_CIRCUITS: Final = "imagegen.short_circuits"
QUEUE_S: Final = "imagegen.queue_s"
HEDGED: Final = "imagegen.hedged"
"""Why two requests were in flight: probe, slow or timeout. Set only if they were."""
SETUP_S: Final = "imagegen.setup_s"
"""Seconds in which SDKs were loaded and built for the call."""
QUEUE_WAITED: Final = "imagegen.queue.waited"
"""Jaeger supports equality search only, so a boolean accompanies the wait time. It is set only
when true."""
BACKOFF_TOTAL: Final = "imagegen.retry.backoff_total"
CONTROL_ORDERS: Final = "imagegen.control.orders"
"""The operators' orders that were in force when the call started. Set only if there were any."""
COST_USD: Final = "imagegen.cost_usd"
ADJUSTMENTS: Final = "imagegen.adjustments"
REFERENCES_DROPPED: Final = "imagegen.references.dropped"
REFERENCES_NOTES: Final = "imagegen.references.notes"

# One request, on its own span.
PROVIDER: Final = "imagegen.provider"
MODEL: Final = "imagegen.model"
ATTEMPT_NUMBER: Final = "imagegen.attempt.number"
ATTEMPT_MAX: Final = "imagegen.attempt.max"
ATTEMPT_RESOLUTION: Final = "imagegen.attempt.resolution"
ATTEMPT_TIME_LIMIT: Final = "imagegen.attempt.time_limit"
"""Seconds of the route's time limit."""
ATTEMPT_OVERLAP: Final = "imagegen.attempt.overlap"
"""Why it was sent while an earlier route's request was in flight: probe, slow or timeout."""
ATTEMPT_CANCEL_CAUSE: Final = "imagegen.attempt.cancel_cause"
"""Why the library cancelled it: caller, delivered, displaced or round_ended."""
ATTEMPT_UNUSED: Final = "imagegen.attempt.unused"
"""Set, to true, if its image came after that of another route, or after the call."""
ATTEMPT_OUTCOME: Final = "imagegen.attempt.outcome"
ATTEMPT_STATUS: Final = "imagegen.attempt.status"
ATTEMPT_CUT_SHORT: Final = "imagegen.attempt.cut_short"
ATTEMPT_MAY_BE_BILLED: Final = "imagegen.attempt.may_be_billed"
ATTEMPT_SILENT: Final = "imagegen.attempt.silent"
WILL_RETRY: Final = "imagegen.attempt.will_retry"
RETRY_BACKOFF: Final = "imagegen.retry.backoff"
RETRY_AFTER: Final = "imagegen.retry.after"
RETRY_HINTED: Final = "imagegen.retry.hinted"

# The breaker's numbers at that moment.
CIRCUIT_BREAKER_NAME: Final = "imagegen.circuit_breaker.name"
CIRCUIT_BREAKER_STATE: Final = "imagegen.circuit_breaker.state"
CIRCUIT_BREAKER_PROBE: Final = "imagegen.circuit_breaker.probe"
CIRCUIT_BREAKER_COUNTED: Final = "imagegen.circuit_breaker.counted"
CIRCUIT_BREAKER_COUNTED_AS: Final = "imagegen.circuit_breaker.counted_as"
"""The breaker's own word, where it is more specific: throttled, slow, ignored or stale."""
CIRCUIT_BREAKER_FAILURE_RATE: Final = "imagegen.circuit_breaker.failure_rate"
CIRCUIT_BREAKER_FAILURE_RATE_THRESHOLD: Final = "imagegen.circuit_breaker.failure_rate_threshold"
CIRCUIT_BREAKER_WINDOW_CALLS: Final = "imagegen.circuit_breaker.window.calls"
CIRCUIT_BREAKER_CONSECUTIVE: Final = "imagegen.circuit_breaker.consecutive"
CIRCUIT_BREAKER_FAILURE_THRESHOLD: Final = "imagegen.circuit_breaker.failure_threshold"
CIRCUIT_BREAKER_TRANSITION: Final = "imagegen.circuit_breaker.transition"
CIRCUIT_BREAKER_OPEN_FOR: Final = "imagegen.circuit_breaker.open_for"
CIRCUIT_BREAKER_RETRY_AFTER: Final = "imagegen.circuit_breaker.retry_after"
CIRCUIT_BREAKER_CAUSE: Final = "imagegen.circuit_breaker.cause"
CIRCUIT_BREAKER_FROM: Final = "imagegen.circuit_breaker.from"
CIRCUIT_BREAKER_TO: Final = "imagegen.circuit_breaker.to"
CIRCUIT_BREAKER_RESULT: Final = "imagegen.circuit_breaker.result"
CIRCUIT_BREAKER_REJECTED: Final = "imagegen.circuit_breaker.rejected_calls"
"""Calls that a breaker rejected before a change of its state. In log records only."""
CIRCUIT_BREAKER_SHADOW: Final = "imagegen.circuit_breaker.shadow"

# An operator's order.
CONTROL_ORDER: Final = "imagegen.control.order"
CONTROL_BY: Final = "imagegen.control.by"
CONTROL_WHY: Final = "imagegen.control.why"
CONTROL_LASTS: Final = "imagegen.control.lasts"
"""Seconds until it ends."""

# Candidate settings that are evaluated beside the live ones.
SHADOW_WOULD: Final = "imagegen.shadow.would"

# Keys of span events differ from those of the root span: Jaeger searches both together.
EVENT_FROM: Final = "imagegen.event.from"
EVENT_TO: Final = "imagegen.event.to"
EVENT_CAUSE: Final = "imagegen.event.cause"
EVENT_HEDGED: Final = "imagegen.event.hedged"
EVENT_PROVIDER: Final = "imagegen.event.provider"
EVENT_BACKOFF: Final = "imagegen.event.backoff"
EVENT_HINTED: Final = "imagegen.event.hinted"
EVENT_DROPPED: Final = "imagegen.event.dropped"
EVENT_NOTES: Final = "imagegen.event.notes"

# -- events: names of log records, some of them also events of the root span -----------------------

REQUEST_STARTED: Final = "imagegen.request.started"
REQUEST_COMPLETED: Final = "imagegen.request.completed"
REQUEST_FAILED: Final = "imagegen.request.failed"
REFERENCES_CHANGED: Final = "imagegen.references.changed"
ATTEMPT_COMPLETED: Final = "imagegen.attempt.completed"
ATTEMPT_FAILED: Final = "imagegen.attempt.failed"
RETRY_SCHEDULED: Final = "imagegen.retry.scheduled"
FALLBACK: Final = "imagegen.fallback"
ACCOUNT_CHANGED: Final = "imagegen.account.changed"
"""A call goes on with another account of the same step, which is not a fallback."""
BREAKER_OPENED: Final = "imagegen.circuit_breaker.opened"
BREAKER_HALF_OPENED: Final = "imagegen.circuit_breaker.half_opened"
BREAKER_CLOSED: Final = "imagegen.circuit_breaker.closed"
BREAKER_REJECTED: Final = "imagegen.circuit_breaker.rejected"
SHADOW_DIFFERED: Final = "imagegen.shadow.differed"
CONTROL_APPLIED: Final = "imagegen.control.applied"
CONTROL_ENDED: Final = "imagegen.control.ended"
WARNING: Final = "imagegen.warning"

# -- metrics --------------------------------------------------------------------------------------

CLIENT_DURATION: Final = "gen_ai.client.operation.duration"
CLIENT_TOKENS: Final = "gen_ai.client.token.usage"
OPERATION_DURATION: Final = "imagegen.operation.duration"
OPERATION_ATTEMPTS: Final = "imagegen.operation.attempts"
QUEUE_DURATION: Final = "imagegen.queue.duration"
COST: Final = "imagegen.cost"
RETRY_COUNT: Final = "imagegen.retries"
FALLBACK_COUNT: Final = "imagegen.fallbacks"
HEDGE_COUNT: Final = "imagegen.hedges"
BREAKER_CALLS: Final = "imagegen.circuit_breaker.calls"
BREAKER_TRANSITIONS: Final = "imagegen.circuit_breaker.transitions"
SHADOW_COUNT: Final = "imagegen.shadow.differences"
BREAKER_STATE_GAUGE: Final = "imagegen.circuit_breaker.state"
BREAKER_RATE_GAUGE: Final = "imagegen.circuit_breaker.failure_rate"
BREAKER_WINDOW_GAUGE: Final = "imagegen.circuit_breaker.window.calls"
NOT_PERMITTED: Final = "not_permitted"
"""Value of BREAKER_RESULT for a request that the breaker did not let through."""
OTHER: Final = "other"
"""Replaces models that no route names, to bound the number of time series."""
