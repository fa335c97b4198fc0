"""The commands honor OTEL_* variables; an unreachable collector causes one line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
from opentelemetry import trace

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the otel extra")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from trace_backends import collector

from resilient_imagen import Settings, _settings_types
from resilient_imagen.telemetry.backoff_exporter import BackoffExporter
from resilient_imagen.telemetry.setup import setup_tracing

PROGRAM = """
import sys
from opentelemetry import trace
from resilient_imagen.telemetry.setup import setup_tracing
stop = setup_tracing("given", endpoint=sys.argv[1] if len(sys.argv) > 1 else None)
for _ in range(3000):
    trace.get_tracer("t").start_span("imagegen.generate").end()
print("tracing" if stop else "off", stop and stop())
"""


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a separate process: a global provider can be set only once."""
    environment = {**os.environ, **variables, "NO_PROXY": "*", "OTEL_BSP_MAX_QUEUE_SIZE": "9999"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    ],
)
def test_without_a_variable_no_provider_is_set(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a variable, or with one that disables tracing, no provider is set.

    A warning is printed only if the user requested traces.
    """
    warnings: list[str] = []
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert setup_tracing("x", warn=warnings.append) is None
    assert warnings == []
    reason = next((f"{name}={value}" for name, value in variables.items()), None)
    assert setup_tracing("x", asked=True, warn=warnings.append) is None
    assert warnings == ([] if reason is None else [f"tracing is off: {reason}"])
    warnings.clear()
    if reason is not None:
        to = "http://127.0.0.1:9"
        assert setup_tracing("x", endpoint=to, warn=warnings.append) is None
        assert warnings == [f"tracing is off: {reason}"]
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@pytest.mark.parametrize(
    ("variables", "warning"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "tracing is off: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            "tracing is off: OTEL_TRACES_EXPORTER=zipkin is not known; use otlp, console or none",
        ),
    ],
)
def test_an_invalid_variable_causes_one_warning(
    variables: dict[str, str], warning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warning names the variable and the allowed values."""
    warnings: list[str] = []
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert setup_tracing("x", warn=warnings.append) is None
    assert warnings == [warning]


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the SDK is missing, the message names the extra to install."""
    warnings: list[str] = []
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert setup_tracing("x", endpoint="http://127.0.0.1:9", warn=warnings.append) is None
    assert warnings == ["tracing is off: pip install 'resilient-imagen[otel]'"]


@pytest.mark.parametrize(
    ("by", "variables", "service"),
    [
        ("variable", {}, "given"),
        ("variable", {"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ("argument", {"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ("argument", {"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,a=b"}, "theirs"),
    ],
)
def test_spans_arrive_under_the_right_name(
    by: str, variables: dict[str, str], service: str
) -> None:
    """OTEL_SERVICE_NAME replaces the default name; both endpoint variables work."""
    with collector() as backend:
        if by == "argument":
            done = run(backend.otlp, **variables)
        else:
            done = run(OTEL_EXPORTER_OTLP_ENDPOINT=backend.otlp, **variables)
        assert (done.stdout, done.stderr) == ("tracing True\n", "")
        assert len(backend.find(service, {})) == 3000


def test_console_spans_stay_off_standard_output() -> None:
    """Spans for the console are not written to standard output, which has the results."""
    done = run(OTEL_TRACES_EXPORTER="console")
    assert done.stdout == "tracing True\n"
    assert done.stderr.count('"name": "imagegen.generate"') == 3000


@pytest.mark.ci
def test_an_unreachable_collector_is_logged_once() -> None:
    """An unreachable collector gives one log line without the password, and delays nothing."""
    started = time.monotonic()
    done = run("http://me:sesame@127.0.0.1:9")
    assert done.stdout == "tracing False\n"
    assert done.stderr == (
        "resilient-imagen: 3000 spans could not be sent to http://127.0.0.1:9: "
        "is a collector there?\n"
    )
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("address", ["me:sesame@127.0.0.1:9", "http://me:sesame/me@host"])
@pytest.mark.parametrize("variable", ["", "TRACES_"])
def test_a_collectors_address_that_is_not_valid_is_not_shown(variable: str, address: str) -> None:
    """The warning names the variable, as the place of the password is not known."""
    done = run(**{f"OTEL_EXPORTER_OTLP_{variable}ENDPOINT": address})
    assert done.stderr == (
        "resilient-imagen: 3000 spans could not be sent to the address in "
        f"OTEL_EXPORTER_OTLP_{variable}ENDPOINT: is a collector there?\n"
    )


class Flaky(SpanExporter):
    def __init__(self) -> None:
        self.works = False
        self.asked = 0
        self.closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked += 1
        if not self.works:
            raise ConnectionError
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def shutdown(self) -> None:
        self.closed = True


def test_an_unreachable_collector_causes_a_pause() -> None:
    """After a failure, batches are dropped for a while; then the export is tried again."""
    now, warnings, flaky = [1000.0], list[str](), Flaky()
    patient = BackoffExporter(flaky, "http://somewhere", warnings.append, clock=lambda: now[0])
    span = TracerProvider().get_tracer("t").start_span("s")
    assert isinstance(span, ReadableSpan)
    assert patient.export([span]) is SpanExportResult.FAILURE
    assert patient.export([span, span]) is SpanExportResult.FAILURE
    assert flaky.asked == 1
    now[0] += 30
    flaky.works = True
    assert patient.export([span]) is SpanExportResult.SUCCESS
    assert patient.force_flush()
    patient.shutdown()
    assert flaky.closed
    assert warnings == ["3 spans could not be sent to http://somewhere: is a collector there?"]


@pytest.mark.parametrize(
    ("word", "captured"),
    [
        ("", False),
        (" ", False),
        ("NO_CONTENT", False),
        ("event_only", False),
        ("false", False),
        ("SPAN_ONLY", True),
        (" span_and_event ", True),
        ("True", True),
    ],
)
def test_opentelemetrys_values_control_content_capture(
    word: str, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current and the earlier values are accepted, for spans only."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", word)
    assert Settings().capture_content is captured


@pytest.mark.parametrize("word", ["1", "yes", "ALWAYS"])
def test_unknown_values_capture_no_content(
    word: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unknown value causes one warning with the allowed values."""
    name = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
    _settings_types._warn_unknown_capture_word.cache_clear()
    monkeypatch.setenv(name, word)
    assert Settings().capture_content is False
    assert Settings().capture_content is False
    (warning,) = caplog.messages
    assert warning.startswith(f"{name} has an unknown value")
    assert "SPAN_ONLY" in warning
