"""Compatibility with OpenTelemetry instrumentations of the SDKs: one span for each model call."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import context as otel_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.context import Context

__all__ = ["as_inference_span", "suppress_instrumentation"]


def as_inference_span(context: Context) -> Context:
    """Return ``context`` with a mark that its model call has a span already.

    SDK instrumentations check this key of opentelemetry-util-genai before they add a span. If no
    instrumentation is installed, the module is not loaded and the context is returned unchanged.
    The module is a beta: if its API has changed, the context is returned unchanged, too.
    """
    util = sys.modules.get("opentelemetry.util.genai.invocation")
    if util is None:
        return context
    try:
        key: str = util.CLIENT_INFERENCE_CONTEXT_KEY
        return otel_context.set_value(key, util.InferenceData(), context)
    except Exception:  # noqa: BLE001 - a duplicate span is better than a failed call
        return context


@contextmanager
def suppress_instrumentation() -> Iterator[None]:
    """Suppress spans of SDK instrumentations in this block, for a call that is not really sent."""
    token = otel_context.attach(as_inference_span(otel_context.get_current()))
    try:
        yield
    finally:
        otel_context.detach(token)
