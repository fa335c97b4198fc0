"""Getting along with instrumentations of the vendors' SDKs: a model call is told once."""

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
    """Say that whoever owns ``context`` tells of the model call made in it.

    SDK instrumentations ask for this key of opentelemetry-util-genai before they add a span.
    Where none of them is installed, the module is not loaded, and there is nobody to tell. It is a
    beta: whatever it has become, the call goes on.
    """
    util = sys.modules.get("opentelemetry.util.genai.invocation")
    if util is None:
        return context
    try:
        key: str = util.CLIENT_INFERENCE_CONTEXT_KEY
        return otel_context.set_value(key, util.InferenceData(), context)
    except Exception:  # noqa: BLE001 - two spans are better than none
        return context


@contextmanager
def suppress_instrumentation() -> Iterator[None]:
    """In this block no SDK instrumentation tells of a model call: none is really made."""
    token = otel_context.attach(as_inference_span(otel_context.get_current()))
    try:
        yield
    finally:
        otel_context.detach(token)
