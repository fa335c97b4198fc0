"""Tracing for this project's commands, configured by OpenTelemetry's environment variables.

The library itself never installs a provider, which is the application's task.
"""

# OpenTelemetry configures itself from the environment only in a program that was started by
# `opentelemetry-instrument`. So exporters are chosen here; the SDK reads every other variable.

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from resilient_imagen._validation import shown_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["setup_tracing"]

_TIMEOUT: Final = 3.0
"""Seconds for an export, retries included, unless OTEL_EXPORTER_OTLP_TIMEOUT says otherwise."""
_OTLP: Final = "OTEL_EXPORTER_OTLP_"
_LOCAL: Final = "http://localhost:4318"


def setup_tracing(
    service_name: str,
    *,
    endpoint: str | None = None,
    asked: bool = False,
    warn: Callable[[str], None] | None = None,
) -> Callable[[], bool] | None:
    """Export spans as OTEL_* states, or to ``endpoint``; do nothing if neither requests it.

    OTEL_TRACES_EXPORTER may name otlp, console and none; the protocol is http/protobuf. The
    variables of OpenTelemetry's SDK and of its OTLP exporter have their usual meaning.

    Args:
        service_name: Used unless the environment names the service.
        endpoint: Base address of an OTLP collector (``http://127.0.0.1:4318``). It replaces the
            environment's, but does not override a variable that disables tracing.
        asked: The user asked for traces: warn if the environment disables them. Implied by
            ``endpoint``.
        warn: Called with one line about each cause that keeps spans from being delivered; standard
            error when None.

    Returns:
        A function to call before the program ends. It sends the remaining spans, takes a few
        seconds at most and returns whether all spans arrived. None when no spans are sent, or when
        another provider sends them.
    """
    warn = warn or _to_stderr
    if refusal := _refusal():
        if asked or endpoint is not None:
            warn(f"tracing is off: {refusal}")
        return None
    kinds = _exporters_asked_for(endpoint)
    if not kinds or _is_set_up():
        return None
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporters = [_new_exporter(kind, endpoint, warn) for kind in kinds]
    except ImportError:
        warn("tracing is off: pip install 'resilient-imagen[otel]'")
        return None
    except ValueError as error:
        warn(f"tracing is off: {error}")
        return None
    provider = TracerProvider(resource=_resource(service_name))
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    def finish() -> bool:
        provider.shutdown()
        return not any(getattr(exporter, "lost", 0) for exporter in exporters)

    return finish


def _is_set_up() -> bool:
    """Return whether there is a provider already, as under `opentelemetry-instrument`."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _otlp_variable(name: str) -> str | None:
    """Return the exporter's variable, of which there is one for traces and one for all signals."""
    return os.environ.get(f"{_OTLP}TRACES_{name}") or os.environ.get(f"{_OTLP}{name}") or None


def _refusal() -> str | None:
    """Return the variable that disables the export of traces, or None."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "OTEL_SDK_DISABLED=true"
    return "OTEL_TRACES_EXPORTER=none" if "none" in _named() else None


def _named() -> list[str]:
    named = os.environ.get("OTEL_TRACES_EXPORTER", "").split(",")
    return [kind.strip() for kind in named if kind.strip()]


def _exporters_asked_for(endpoint: str | None) -> list[str]:
    if endpoint is not None:
        return ["otlp"]
    return _named() or (["otlp"] if _otlp_variable("ENDPOINT") else [])


def _new_exporter(kind: str, endpoint: str | None, warn: Callable[[str], None]) -> SpanExporter:
    """Return an exporter.

    Raises:
        ValueError: The environment asks for one that is not supported.
        ImportError: The extra ``otel`` is not installed.
    """
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)  # standard output is for results
    if kind != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER={kind} is not known; use otlp, console or none")
    if endpoint is None and (_otlp_variable("PROTOCOL") or "").startswith("grpc"):
        raise ValueError(f"set {_OTLP}PROTOCOL=http/protobuf")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    from resilient_imagen.telemetry.backoff_exporter import BackoffExporter

    # BackoffExporter reports in one line what the exporter would log in many.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    exporter = OTLPSpanExporter(
        endpoint=None if endpoint is None else endpoint.rstrip("/") + "/v1/traces",
        timeout=None if _otlp_variable("TIMEOUT") else _TIMEOUT,
    )
    return BackoffExporter(exporter, _destination(endpoint), warn)


def _destination(endpoint: str | None) -> str:
    """Return the collector's address as it may be shown, or where it is set if it is not valid."""
    try:
        return shown_address(endpoint or _otlp_variable("ENDPOINT") or _LOCAL)
    except ValueError:
        if endpoint is not None:
            return "the given endpoint"
        kind = "TRACES_" if os.environ.get(f"{_OTLP}TRACES_ENDPOINT") else ""
        return f"the address in {_OTLP}{kind}ENDPOINT"


def _resource(service_name: str) -> Resource:
    """Return the environment's resource, named ``service_name`` if it has no name."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    found = Resource.create()
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):  # the SDK's default
        found = found.merge(Resource({SERVICE_NAME: service_name}))
    return found


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"resilient-imagen: {line}\n")
