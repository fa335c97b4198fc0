"""Tracing for our own commands, as OpenTelemetry's environment variables ask for it.

For programs that we own, such as the command line and the demo. The library itself never installs
a provider: that is the application's.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["otlp_address", "setup_tracing", "without_credentials"]

_TIMEOUT: Final = 3.0
"""Seconds for an export, retries included, unless OTEL_EXPORTER_OTLP_TIMEOUT says otherwise."""
_LOCAL: Final = "http://localhost:4318"


def setup_tracing(
    service_name: str,
    *,
    endpoint: str | None = None,
    asked: bool = False,
    complain: Callable[[str], None] | None = None,
) -> Callable[[], bool] | None:
    """Send spans where OTEL_* says, or to ``endpoint``; do nothing when nobody asked.

    Honoured: OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER (otlp, console, none), OTEL_SERVICE_NAME,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_ENDPOINT, _HEADERS, _TIMEOUT, _COMPRESSION and the
    same with _TRACES_, OTEL_TRACES_SAMPLER, OTEL_BSP_*. The protocol is http/protobuf.

    Args:
        service_name: Used unless the environment names the service.
        endpoint: Base address of an OTLP collector (``http://127.0.0.1:4318``), which wins over
            the environment's, but not over its refusal to trace at all.
        asked: Somebody asked for traces: say so if the environment refuses. Implied by
            ``endpoint``.
        complain: Is told, in one line, what keeps spans from being delivered; standard error
            when None.

    Returns:
        What to call before the program ends: it sends what is left, takes a few seconds at most
        and says whether all spans arrived. None when spans go nowhere, or where somebody else
        sends them.
    """
    complain = complain or _to_stderr
    if refusal := _refusal():
        if asked or endpoint is not None:
            complain(f"tracing is off: {refusal}")
        return None
    kinds = _exporters_asked_for(endpoint)
    if not kinds or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None  # nobody asked, or opentelemetry-instrument was here first
    if endpoint is None and _protocol().startswith("grpc"):
        complain("tracing is off: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
        return None
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporters = [_exporter(kind, endpoint, complain) for kind in kinds]
    except ImportError:
        complain("tracing is off: pip install 'resilient-imagen[otel]'")
        return None
    except ValueError as error:
        complain(f"tracing is off: {error}")
        return None
    provider = TracerProvider(resource=_resource(service_name))
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    def finish() -> bool:
        provider.shutdown()
        return not any(getattr(exporter, "lost", 0) for exporter in exporters)

    return finish


def otlp_address(endpoint: str | None = None) -> str | None:
    """Return the address to which ``setup_tracing`` sends spans over OTLP; None if to none.

    Args:
        endpoint: The same as for ``setup_tracing``.
    """
    if _refusal() or "otlp" not in _exporters_asked_for(endpoint):
        return None
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return _otlp_address(endpoint)


def _otlp_address(endpoint: str | None) -> str:
    return (
        endpoint
        or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or _LOCAL
    )


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
    addressed = any(
        os.environ.get(name)
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    return _named() or (["otlp"] if addressed else [])


def _protocol() -> str:
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", ""
    )


def _exporter(kind: str, endpoint: str | None, complain: Callable[[str], None]) -> SpanExporter:
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)  # standard output is for results
    if kind != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER={kind} is not known; use otlp, console or none")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    from resilient_imagen.telemetry.backoff_exporter import BackoffExporter

    # What it has to say, in many lines, is said in one by PatientExporter.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    set_by_user = any(
        os.environ.get(name)
        for name in ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
    )
    exporter = OTLPSpanExporter(
        endpoint=None if endpoint is None else endpoint.rstrip("/") + "/v1/traces",
        timeout=None if set_by_user else _TIMEOUT,
    )
    where = without_credentials(_otlp_address(endpoint))
    return BackoffExporter(exporter, where, complain)


def without_credentials(address: str) -> str:
    """Return an address as it may be shown: without a user, a password, a query or a fragment."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _resource(service_name: str) -> Resource:
    from opentelemetry.sdk.resources import Resource

    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    # Given in code, the name would win over the environment's.
    return Resource.create({} if named else {"service.name": service_name})


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"resilient-imagen: {line}\n")
