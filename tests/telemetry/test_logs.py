"""Log records: none without a handler, complete with one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import wraps
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import NoOpTracer
from pipeline_kit import FAST
from telemetry_kit import TelemetryScenario, attributes, run_telemetry_scenario

from resilient_imagen import ImageClient, ImageGenerationError, Reason, Settings
from resilient_imagen.testing import FakeProvider, run_virtual

Lines = list[dict[str, Any]]


SETTINGS = "imagegen.settings.reported"
"""The record about a client's settings, which comes first; see test_settings_report."""


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Return the event dicts that an application's structlog pipeline receives."""
    caught: Lines = []

    def catch(_logger: Any, level: str, event: Any) -> Any:
        if event["event"] != SETTINGS:
            caught.append({**event, "level": level})
        raise structlog.DropEvent

    structlog.configure(processors=[catch])
    yield caught
    structlog.reset_defaults()


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """Return the records that an application's logging receives without structlog."""
    caught: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.addFilter(lambda record: getattr(record, "event", "") != SETTINGS)
    handler.emit = caught.append  # type: ignore[method-assign,assignment]
    logger = logging.getLogger("imagegen")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield caught
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


async def outage(scenario: TelemetryScenario) -> None:
    """Run an outage with a fallback and a rejection."""
    scenario.google.fail(Reason.OVERLOADED, status=503, times=3, retry_after=4)
    await scenario.ask()
    await scenario.ask()


STORY = [
    ("debug", "imagegen.request.started"),
    ("warning", "imagegen.attempt.failed"),
    ("info", "imagegen.retry.scheduled"),
    ("warning", "imagegen.attempt.failed"),
    ("info", "imagegen.retry.scheduled"),
    ("error", "imagegen.circuit_breaker.opened"),
    ("warning", "imagegen.attempt.failed"),
    ("warning", "imagegen.fallback"),
    ("info", "imagegen.request.completed"),
    ("debug", "imagegen.request.started"),
    ("info", "imagegen.circuit_breaker.rejected"),
    ("warning", "imagegen.fallback"),
    ("info", "imagegen.request.completed"),
]


def test_an_outage_has_its_events_in_order(lines: Lines) -> None:
    """Every event has its documented name and level, in order."""
    run_telemetry_scenario(outage, **FAST)
    assert [(line["level"], line["event"]) for line in lines] == STORY


def test_an_attempt_line_can_be_replayed(lines: Lines) -> None:
    """An attempt's line has time, route, latency, reason, hint, breaker state and cost."""
    began = time.time()
    run_telemetry_scenario(outage, **FAST)
    failed = next(line for line in lines if line["event"] == "imagegen.attempt.failed")
    wanted = {
        "route": "google:gemini-3-pro-image",
        "provider": "google",
        "model": "gemini-3-pro-image",
        "latency_s": 0.1,
        "reason": "overloaded",
        "retry.after": 4,
        "attempt.number": 1,
        "attempt.max": 3,
        "attempt.status": 503,
        "attempt.will_retry": True,
        "circuit_breaker.state": "closed",
        "circuit_breaker.counted": "failure",
        "circuit_breaker.consecutive": 1,
        "circuit_breaker.failure_rate": 1.0,
        "circuit_breaker.window.calls": 1,
        "circuit_breaker.failure_threshold": 3,
        "error.type": "overloaded",
        "exception.type": "ProviderOverloadedError",
    }
    assert {key: failed[key] for key in wanted} == wanted
    assert failed["time"] <= began
    completed = next(line for line in lines if line["event"] == "imagegen.request.completed")
    served = {
        "circuit_breaker.name": "openai:gpt-image-2.5-flare",
        "attempt.latency_s": 2.0,
        "attempt.queue_s": 0.0,
        "attempt.number": 1,
        "circuit_breaker.state": "closed",
        "circuit_breaker.counted": "success",
        "circuit_breaker.failure_rate": 0.0,
        "circuit_breaker.window.calls": 1,
    }
    assert {key: completed[key] for key in served} == served
    assert completed["cost_usd"] > 0
    assert completed["time"] - failed["time"] > 10, "events keep their distance in virtual time"


def test_a_successful_call_has_one_line(lines: Lines) -> None:
    """A successful call has one line, which includes the request that served it."""
    run_telemetry_scenario(TelemetryScenario.ask)
    visible = [line for line in lines if line["level"] != "debug"]
    assert [line["event"] for line in visible] == ["imagegen.request.completed"]


def test_on_an_ordinary_loop_times_are_unix_times(lines: Lines) -> None:
    """Times are seconds since the epoch."""
    import asyncio

    from resilient_imagen import ImageClient, Settings
    from resilient_imagen.testing import FakeProvider

    async def main() -> None:
        google = FakeProvider("google", latency=0)
        settings = Settings(routes="google:gemini-3-pro-image")
        async with ImageClient(settings, providers=[google]) as client:
            await client.generate("a lighthouse")

    before = time.time()
    asyncio.run(main())
    after = time.time()
    assert lines
    for line in lines:
        assert before - 0.5 <= line["time"] <= after + 0.5


NOT_ON_SPANS = {
    "attempt.ago_s", "attempt.latency_s", "attempt.queue_s", "event", "exception.message",
    "exception.type", "latency_s", "level", "reason", "route", "span_id", "summary", "time",
    "trace_id",
}  # fmt: skip


def test_keys_are_the_span_attributes_without_the_prefix(lines: Lines) -> None:
    """Each key and value of a line is an attribute of the span that the line names.

    Fields of a call's line about the request that served it are attributes of that request's span.
    """

    async def scene(scenario: TelemetryScenario) -> None:
        await outage(scenario)
        scenario.google.heal()
        await asyncio.sleep(100)
        await scenario.ask()
        scenario.google.crash(KeyError("x"))
        with pytest.raises(KeyError):
            await scenario.ask()
        spans = {
            format(span.context.span_id, "016x"): dict(span.attributes or {})
            for span in scenario.telemetry.spans()
            if span.context is not None
        }
        kinds = {"attempt.failed", "request.failed", "request.completed",
                 "circuit_breaker.rejected"}  # fmt: skip
        served = {
            tags["imagegen.call_id"]: tags
            for tags in spans.values()
            if tags.get("imagegen.attempt.outcome") == "success"
        }
        seen = set()
        for line in lines:
            kind = line["event"].removeprefix("imagegen.")
            if kind not in kinds:
                continue
            seen.add(kind)
            span = spans[line["span_id"]]
            request = served[line["call_id"]] if kind == "request.completed" else {}
            for key in line.keys() - NOT_ON_SPANS:
                own = span.get(f"imagegen.{key}", span.get(key))
                found = request.get(f"imagegen.{key}", request.get(key)) if own is None else own
                assert found == (tuple(line[key]) if isinstance(line[key], list) else line[key])
            visible = {name.removeprefix("imagegen.") for name in span}
            assert visible - line.keys() <= {"gen_ai.output.type", "settings"}, (
                "the span has no other attributes"
            )
        assert seen == kinds

    run_telemetry_scenario(scene, **FAST)


def test_lines_carry_the_ids_of_the_current_span(lines: Lines) -> None:
    """A line has the W3C ids of the attempt's span, or of the call's root span."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        await scenario.ask()
        by_event = {line["event"]: line for line in lines}
        root, attempt = scenario.telemetry.roots()[0], scenario.telemetry.attempts()[0]
        for event, span in (
            ("imagegen.request.started", root),
            ("imagegen.attempt.failed", attempt),
            ("imagegen.request.completed", root),
        ):
            context = span.get_span_context()
            assert context is not None
            assert by_event[event]["trace_id"] == f"{context.trace_id:032x}"
            assert by_event[event]["span_id"] == f"{context.span_id:016x}"

    run_telemetry_scenario(scene, max_retries=0)


def test_lines_name_the_trace_of_a_caller_whose_provider_is_not_the_global_one(
    lines: Lines,
) -> None:
    """The library makes no spans then. Its lines have the caller's trace.

    The line about an opening is written after the attempt, so it has the trace only if the API's
    own tracer passes the caller's context on, which its older versions do not.
    """
    caller = TracerProvider().get_tracer("application")

    async def main() -> None:
        google = FakeProvider("google").fail(Reason.QUOTA_EXHAUSTED, status=429, times=1)
        async with ImageClient(Settings(), providers=[google, FakeProvider("openai")]) as client:
            with caller.start_as_current_span("request") as span:
                passed_on = NoOpTracer().start_span("x").get_span_context().is_valid
                await client.generate("a lighthouse")
        trace_id = f"{span.get_span_context().trace_id:032x}"
        of_calls = [line["trace_id"] for line in lines if "call_id" in line]
        assert set(of_calls) == {trace_id}
        (opening,) = [line for line in lines if line["event"].endswith("opened")]
        assert opening.get("trace_id") == (trace_id if passed_on else None)

    run_virtual(main())


def test_lines_about_a_breaker_name_the_span_that_they_are_about(lines: Lines) -> None:
    """A rejection refers to its own span; an opening to the request that caused it."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.overlap_three_requests()
        scenario.client._routing.routes[1].breaker.force_trip(cause="forbidden")
        rejected = [line for line in lines if line["event"].endswith("rejected")]
        assert rejected[0]["span_id"] == hexed(scenario.telemetry.rejects()[0])
        by_request, by_hand = [line for line in lines if line["event"].endswith("opened")]
        (opener,) = [
            span
            for span in scenario.telemetry.attempts()
            if "imagegen.circuit_breaker.transition" in attributes(span)
        ]
        assert by_request["span_id"] == hexed(opener)
        assert "span_id" not in by_hand

    def hexed(span: ReadableSpan) -> str:
        assert span.context is not None
        return f"{span.context.span_id:016x}"

    run_telemetry_scenario(scene, breaker_slow_call=10, breaker_fail_max=2, **FAST)


def test_a_failure_that_needs_an_operator_is_an_error(lines: Lines) -> None:
    """Each rejected key is logged once, as an error."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401)
        await scenario.ask()

    run_telemetry_scenario(scene)
    failed = [line for line in lines if line["event"] == "imagegen.attempt.failed"]
    assert [line["level"] for line in failed] == ["error"]


def test_a_failed_call_is_logged_without_a_traceback(lines: Lines) -> None:
    """Formatters that show local variables of a traceback would show the prompt."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.INVALID_REQUEST, status=400)
        with pytest.raises(ImageGenerationError):
            await scenario.ask()

    run_telemetry_scenario(scene)
    last = lines[-1]
    assert (last["event"], last["level"]) == ("imagegen.request.failed", "error")
    assert last["error.type"] == "invalid_request"
    assert last["exception.type"] == "InvalidRequestError"
    assert "400" in last["exception.message"]
    assert "exc_info" not in last


def test_shadow_openings_are_logged_as_information(lines: Lines) -> None:
    """Openings in shadow mode are logged as information, not as errors."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        await scenario.ask()

    run_telemetry_scenario(scene, breaker_mode="shadow", **FAST)
    opened = [line for line in lines if line["event"] == "imagegen.circuit_breaker.opened"]
    assert [(line["level"], line["circuit_breaker.shadow"]) for line in opened] == [("info", True)]


def test_warnings_reach_the_log(lines: Lines) -> None:
    """A model that is not in the table causes one warning in the log."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.ask(model="gemini-9-ultra-image")
        await scenario.ask(model="gemini-9-ultra-image")

    run_telemetry_scenario(scene)
    warned = [line for line in lines if line["event"] == "imagegen.warning"]
    assert [(line["level"], line["code"]) for line in warned] == [("warning", "unknown_model")]
    assert "gemini-9-ultra-image" in warned[0]["warning"]


def test_a_call_with_thousands_of_references_leaves_a_line_of_bounded_length(lines: Lines) -> None:
    """Fifty dropped references are listed; the summary counts all of them."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.client.generate("x", references=["?"] * 2000)

    run_telemetry_scenario(scene, **FAST)

    [line] = [line for line in lines if line["event"] == "imagegen.references.changed"]
    assert len(line["references.dropped"]) == 50
    assert "2000 references dropped" in line["summary"]


@pytest.mark.parametrize(
    "level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL]
)
def test_each_level_of_logging_gets_exactly_its_records(level: int) -> None:
    """The logger's level filters records and changes no other."""

    async def scene(scenario: TelemetryScenario) -> None:
        await outage(scenario)
        scenario.openai.fail(Reason.INVALID_REQUEST, status=400)
        with pytest.raises(ImageGenerationError):
            await scenario.ask()

    logger = logging.getLogger("imagegen")

    def levels_and_names(level: int) -> list[tuple[int, str]]:
        caught: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = caught.append  # type: ignore[method-assign,assignment]
        logger.addHandler(handler)
        logger.setLevel(level)
        try:
            run_telemetry_scenario(scene, **FAST)
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
        return [(record.levelno, record.__dict__["event"]) for record in caught]

    everything = levels_and_names(logging.DEBUG)
    assert {severity for severity, _ in everything} == {10, 20, 30, 40}
    assert levels_and_names(level) == [record for record in everything if record[0] >= level]


async def fallback(scenario: TelemetryScenario) -> None:
    scenario.google.fail(Reason.OVERLOADED, status=503)
    await scenario.ask()


FALLBACK = ["imagegen.attempt.failed", "imagegen.fallback"]
"""Records that are enabled at the level of a root logger that was not configured."""


@pytest.fixture
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """Provide records with a root logger without handlers, as at the start of Python."""
    # pytest adds its handlers to the real one when the test starts.
    monkeypatch.setattr(
        logging.getLogger("imagegen"), "parent", logging.RootLogger(logging.WARNING)
    )
    made: list[logging.LogRecord] = []

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        made.append(record)
        return record

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(factory)
    yield made
    logging.setLogRecordFactory(before)


def names_of(records: list[logging.LogRecord]) -> list[str]:
    return [record.__dict__["event"] for record in records if record.name == "imagegen"]


def test_no_record_is_made_while_no_handler_would_receive_it(
    unconfigured: list[logging.LogRecord],
) -> None:
    """A record is made only if a handler other than the NullHandler would receive it."""
    logger = logging.getLogger("imagegen")
    run_telemetry_scenario(fallback, max_retries=0)
    assert names_of(unconfigured) == []
    assert logger.parent is not None
    logger.parent.addHandler(logging.StreamHandler(io.StringIO()))
    run_telemetry_scenario(fallback, max_retries=0)
    assert names_of(unconfigured) == FALLBACK
    logger.propagate = False
    try:
        run_telemetry_scenario(fallback, max_retries=0)
    finally:
        logger.propagate = True
    assert names_of(unconfigured) == FALLBACK


@pytest.mark.parametrize("handler", [logging.StreamHandler(io.StringIO()), None])
def test_a_configuration_may_replace_the_null_handler(
    handler: logging.Handler | None,
    unconfigured: list[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may remove the handler, so that Python prints warnings by its last resort."""
    handlers = [] if handler is None else [handler]
    monkeypatch.setattr(logging.getLogger("imagegen"), "handlers", handlers)
    run_telemetry_scenario(fallback, max_retries=0)
    assert names_of(unconfigured) == FALLBACK


def test_a_tool_that_patches_call_handlers_gets_the_records(
    unconfigured: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools that patch callHandlers, such as Sentry, receive records without a handler."""
    received: list[logging.LogRecord] = []
    original = logging.Logger.callHandlers

    @wraps(original)
    def patched(logger: logging.Logger, record: logging.LogRecord) -> None:
        received.append(record)
        original(logger, record)

    monkeypatch.setattr(logging.Logger, "callHandlers", patched)
    run_telemetry_scenario(fallback, max_retries=0)
    assert names_of(received) == names_of(unconfigured) == FALLBACK


def test_logging_gets_ordinary_records(records: list[logging.LogRecord]) -> None:
    """A record has name, level, a readable message, and every key as an attribute."""
    run_telemetry_scenario(outage, **FAST)
    assert [(record.levelname.lower(), record.event) for record in records] == STORY  # type: ignore[attr-defined]
    failed = next(record for record in records if record.levelno == logging.WARNING)
    assert failed.name == "imagegen"
    message = failed.getMessage()
    assert message.startswith('imagegen.attempt.failed summary="google overloaded (503)')
    assert " route=google:gemini-3-pro-image " in message
    assert " reason=overloaded " in message
    assert failed.__dict__["circuit_breaker.consecutive"] == 1
    assert all(record.exc_info is None for record in records)


def test_no_line_is_built_for_a_filtered_level(lines: Lines) -> None:
    """structlog's level filter is checked before a line is built."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        processors=structlog.get_config()["processors"],
    )
    run_telemetry_scenario(outage, **FAST)
    assert {line["level"] for line in lines} == {"warning", "error"}


def test_any_structlog_wrapper_is_supported() -> None:
    """structlog over logging, with its filter and renderer, is supported."""
    caught: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: caught.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("imagegen")
    logger.addHandler(handler)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    try:
        run_telemetry_scenario(outage, **FAST)
    finally:
        structlog.reset_defaults()
        logger.removeHandler(handler)
    events = [json.loads(line)["event"] for line in caught]
    assert events == [name for level, name in STORY if level in {"warning", "error"}]


def test_a_logger_factory_need_not_take_a_name() -> None:
    """A logger factory that takes no name is supported."""
    caught = structlog.testing.CapturingLogger()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()], logger_factory=lambda: caught
    )
    try:
        run_telemetry_scenario(outage, **FAST)
    finally:
        structlog.reset_defaults()
    events = [json.loads(call.args[0])["event"] for call in caught.calls]
    assert events == [SETTINGS, *(name for _, name in STORY)]


def test_structlog_may_be_configured_during_a_call(
    records: list[logging.LogRecord],
) -> None:
    """If structlog is configured during a call, the call's further lines go to its pipeline."""
    caught = structlog.testing.CapturingLogger()

    async def scene(scenario: TelemetryScenario) -> None:
        asking = asyncio.create_task(scenario.ask())
        await asyncio.sleep(0.5)
        structlog.configure(
            processors=[structlog.processors.JSONRenderer()], logger_factory=lambda: caught
        )
        await asking

    try:
        run_telemetry_scenario(scene)
    finally:
        structlog.reset_defaults()
    assert [record.__dict__["event"] for record in records] == ["imagegen.request.started"]
    events = [json.loads(call.args[0])["event"] for call in caught.calls]
    assert events == ["imagegen.request.completed"]


def test_unknown_values_are_left_out(lines: Lines) -> None:
    """Unknown values, such as a price, have no key instead of null."""

    async def main() -> None:
        google = FakeProvider("google")
        async with ImageClient(Settings(routes="google:own-model"), providers=[google]) as client:
            await client.generate("a lighthouse")

    run_virtual(main())
    (line,) = [line for line in lines if line["event"] == "imagegen.request.completed"]
    assert "cost_usd" not in line
    assert None not in line.values()


def test_a_new_configuration_applies_from_the_next_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logger is cached until structlog's configuration or output stream changes."""
    try:
        structlog.configure(processors=[structlog.processors.JSONRenderer()])
        run_telemetry_scenario(TelemetryScenario.ask)
        printed = capsys.readouterr().out
        assert printed.count("imagegen.request.completed") == 1
        elsewhere = io.StringIO()
        monkeypatch.setattr(sys, "stdout", elsewhere)
        run_telemetry_scenario(TelemetryScenario.ask)
        assert elsewhere.getvalue().count("imagegen.request.completed") == 1
        with structlog.testing.capture_logs() as caught:
            run_telemetry_scenario(TelemetryScenario.ask)
        assert [line["event"] for line in caught][-1] == "imagegen.request.completed"
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        run_telemetry_scenario(TelemetryScenario.ask)
        assert elsewhere.getvalue().count("imagegen.request.completed") == 1
    finally:
        structlog.reset_defaults()


_QUIET = """
import sys
from resilient_imagen import ImageClient, Reason, Settings
from resilient_imagen.testing import FakeProvider, run_virtual
{imports}
async def main():
    google = FakeProvider("google").fail(Reason.OVERLOADED, status=503, times=3)
    class Broken:
        inline = True
        def handle(self, event):
            raise RuntimeError
    providers = [google, FakeProvider("openai")]
    async with ImageClient(Settings(), providers=providers, sinks=[Broken()]) as client:
        await client.generate("a lighthouse")
        await client.generate("a lighthouse", model="gemini-9-ultra-image")
run_virtual(main())
"""


@pytest.mark.parametrize("imports", ["", "import structlog"])
def test_nothing_is_printed_when_nothing_is_configured(imports: str) -> None:
    """Without configuration, nothing is printed to standard output."""
    done = subprocess.run(
        [sys.executable, "-c", _QUIET.format(imports=imports)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_rejections_of_an_open_circuit_are_summarized(lines: Lines) -> None:
    """One warning for an open period; the line about its end has the number of rejected calls."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        for _ in range(6):
            await scenario.ask()
        await asyncio.sleep(100)
        await scenario.ask()

    run_telemetry_scenario(scene, **FAST)
    skipped = [
        line["level"]
        for line in lines
        if line["event"] == "imagegen.fallback" and line["fallback.cause"] == "circuit_open"
    ]
    assert skipped == ["warning", "info", "info", "info", "info"]
    (ended,) = [line for line in lines if line["event"].endswith("half_opened")]
    assert ended["circuit_breaker.rejected_calls"] == 5
    assert ended["summary"].endswith("; it rejected 5 calls")
