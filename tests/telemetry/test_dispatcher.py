"""A sink that raises, is slow or gets too many events has no effect on the call."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from images_samples import delivered
from opentelemetry import trace
from telemetry_kit import TelemetryScenario, run_telemetry_scenario

from resilient_imagen import ImageClient, Settings
from resilient_imagen.request import ImageRequest
from resilient_imagen.telemetry.background_sink import BackgroundSink
from resilient_imagen.telemetry.dispatcher import SinkDispatcher
from resilient_imagen.telemetry.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    OperatorWarning,
    RequestEnded,
    RequestStarted,
)
from resilient_imagen.telemetry.logs import LogSink
from resilient_imagen.telemetry.sink import EventSink, SelectiveSink
from resilient_imagen.testing import FakeProvider, RecordingSink, VirtualTimeLoop, run_virtual

who = contextvars.ContextVar("who", default="nobody")


class RaisingSink:
    inline = True

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def handle(self, event: Event) -> None:
        raise self.error


class SlowSink:
    """Runs in the background thread, and blocks until ``go`` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.handled: list[Event] = []
        self.seen: list[tuple[str, bool, str]] = []

    def handle(self, event: Event) -> None:
        self.go.wait(10)
        self.handled.append(event)
        valid = trace.get_current_span().get_span_context().is_valid
        self.seen.append((who.get(), valid, threading.current_thread().name))


def pass_to(sinks: Sequence[EventSink], event: Event) -> None:
    for sink in sinks:
        sink.handle(event)


def warned(number: int) -> OperatorWarning:
    return OperatorWarning(at=float(number), code="n", message=str(number))


async def ask(*sinks: Any) -> None:
    google, openai = FakeProvider("google", latency=0), FakeProvider("openai")
    async with ImageClient(Settings(), providers=[google, openai], sinks=sinks) as client:
        await client.generate("a lighthouse")


@pytest.mark.parametrize(
    "error", [RuntimeError("a lighthouse"), asyncio.CancelledError(), SystemExit(3)]
)
def test_an_error_of_a_sink_does_not_reach_the_call(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The image is returned, later sinks get the event, and one log record has the error type
    only.
    """
    record = RecordingSink()
    run_virtual(ask(RaisingSink(error), record))
    assert record.calls[0].outcome == "success"
    warnings = [entry for entry in caplog.records if entry.name == "resilient_imagen"]
    assert [entry.getMessage() for entry in warnings] == [
        f"sink RaisingSink failed: {type(error).__name__}"
    ]


def test_no_call_waits_for_a_slow_sink() -> None:
    """The call ends before the sink has handled its first event; the sink gets all events later."""
    slow = SlowSink()
    dispatcher = SinkDispatcher([slow])

    async def main() -> None:
        for number in range(100):
            dispatcher.emit(warned(number))
        assert slow.handled == []
        slow.go.set()
        await dispatcher.close(10)

    asyncio.run(main())
    assert [event.at for event in slow.handled] == list(range(100))


def test_a_slow_sink_sees_the_callers_context() -> None:
    """Context variables and the current span are those at the time of the event."""
    slow = SlowSink()
    slow.go.set()

    async def scene(scenario: TelemetryScenario) -> None:
        who.set("caller")
        scenario.client._dispatcher._background = dispatcher._background
        await scenario.ask()
        await dispatcher.close(10)

    dispatcher = SinkDispatcher([slow])
    run_telemetry_scenario(scene)
    assert {name for name, _, _ in slow.seen} == {"caller"}
    settings, *of_the_call = (valid for _, valid, _ in slow.seen)
    assert not settings  # it is about the client, and precedes the call's span
    assert all(of_the_call)
    assert {thread for _, _, thread in slow.seen} == {"resilient_imagen sinks"}


def test_an_error_of_a_slow_sink_is_logged_once_and_later_events_reach_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The sink's thread continues after an error."""

    class Failing(SlowSink):
        def handle(self, event: Event) -> None:
            super().handle(event)
            raise ValueError

    failing = Failing()
    failing.go.set()
    dispatcher = SinkDispatcher([failing])

    async def main() -> None:
        dispatcher.emit(warned(1))
        dispatcher.emit(warned(2))
        await dispatcher.close(10)

    asyncio.run(main())
    assert len(failing.handled) == 2
    assert [entry.getMessage() for entry in caplog.records] == ["sink Failing failed: ValueError"]


def test_events_beyond_the_queue_are_dropped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The queue is bounded; overflow is logged once, and the number of lost events at the end."""
    slow = SlowSink()
    background = BackgroundSink([slow], pass_to, capacity=5)
    for number in range(50):
        background.put(warned(number))
    assert background.dropped >= 44
    slow.go.set()
    background.close(10)
    assert len(slow.handled) + background.dropped == 50
    messages = [entry.getMessage() for entry in caplog.records]
    assert messages[0] == "slow sinks: events are being dropped"
    assert messages[1].startswith(f"slow sinks: {background.dropped} events dropped")
    assert len(messages) == 2


def ended_with(image: bytes) -> RequestEnded:
    return RequestEnded(
        at=0.0, outcome="success", latency_s=1.0, attempts=1, retries=0, short_circuits=0,
        queue_s=0.0, backoff_s=0.0, fallback_cause=None, fallback_from=None,
        result=delivered(image), error=None,
    )  # fmt: skip


def test_a_slow_sink_does_not_fill_the_memory_with_images(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Queued events with images are bounded by bytes; events without images are not dropped."""
    slow = SlowSink()
    background = BackgroundSink([slow], pass_to, capacity_bytes=10_000_000)
    asked = RequestStarted(
        at=0.0, request=ImageRequest("a lighthouse"), provider="google", model="m"
    )
    for _ in range(50):
        background.put(ended_with(bytes(3_000_000)))
        background.put(warned(1))
        background.put(asked)
    assert background.dropped == 47
    slow.go.set()
    background.close(10)
    assert [type(event) for event in slow.handled].count(RequestEnded) == 3
    assert [type(event) for event in slow.handled].count(OperatorWarning) == 50
    assert [type(event) for event in slow.handled].count(RequestStarted) == 50
    assert caplog.messages[0] == "slow sinks: events are being dropped"
    background.put(ended_with(bytes(30_000_000)))
    background.close(10)
    assert len(slow.handled) == 3 + 50 + 50 + 1, "handled events count no longer"


def test_a_handled_event_is_not_kept() -> None:
    """The thread keeps the last event no longer than the sink does."""
    slow = SlowSink()
    slow.go.set()
    background = BackgroundSink([slow], pass_to)
    event = ended_with(bytes(10))
    gone = weakref.ref(event.result)
    background.put(event)
    del event
    background.close(10)
    slow.handled.clear()
    gc.collect()
    assert gone() is None


def test_closing_waits_for_a_limited_time() -> None:
    """A hanging sink delays closing up to the time limit, and the process can end."""
    slow = SlowSink()
    dispatcher = SinkDispatcher([slow])

    async def main() -> None:
        dispatcher.emit(warned(1))
        await asyncio.wait_for(dispatcher.close(0.05), timeout=10)

    asyncio.run(main())
    assert slow.handled == []
    slow.go.set()


def test_closing_without_background_sinks_starts_no_thread() -> None:
    """Closing without background sinks starts no thread and waits for nothing."""
    before = threading.active_count()

    async def main() -> None:
        dispatcher = SinkDispatcher([RecordingSink()])
        dispatcher.emit(warned(1))
        await dispatcher.close()

    asyncio.run(main())
    assert threading.active_count() <= before


def test_inline_sinks_get_events_in_order_and_endings_in_reverse() -> None:
    """The first sink that gets a start gets its end last, as with nested context managers."""
    order: list[tuple[str, str]] = []

    class Named:
        inline = True

        def __init__(self, name: str) -> None:
            self.name = name

        def handle(self, event: Event) -> None:
            order.append((self.name, type(event).__name__))

    run_virtual(ask(Named("a"), Named("b")))
    calls = [entry for entry in order if entry[1].startswith("Request")]
    assert calls == [
        ("a", "RequestStarted"),
        ("b", "RequestStarted"),
        ("b", "RequestEnded"),
        ("a", "RequestEnded"),
    ]


def test_a_selective_sink_is_called_only_with_events_that_it_handles() -> None:
    """Its errors are shielded as others are, and ``handle`` ignores the other types, too."""
    seen: list[str] = []

    class Selective(SelectiveSink):
        def handler_of(self, kind: type[Event]) -> Callable[[Any], None] | None:
            return self.note if kind in {RequestStarted, RequestEnded} else None

        def note(self, event: Event) -> None:
            seen.append(type(event).__name__)
            raise ValueError

    sink, recorded = Selective(), RecordingSink()
    run_virtual(ask(sink, recorded))
    assert seen == ["RequestStarted", "RequestEnded"]
    assert len(recorded.events) > len(seen)
    sink.handle(OperatorWarning(code="n", message="x"))
    with pytest.raises(ValueError):
        sink.handle(recorded.last(RequestEnded))
    assert seen[2:] == ["RequestEnded"]


def test_a_sink_that_is_added_during_an_event_gets_the_next_one() -> None:
    """Another thread may add one while the handlers of the first event of a type are found."""
    recorded = RecordingSink()

    class Adding(SelectiveSink):
        def handler_of(self, kind: type[Event]) -> Callable[[Any], None] | None:
            if kind is OperatorWarning:
                dispatcher.add(recorded)
            return None

    dispatcher = SinkDispatcher([Adding()])
    for number in range(2):
        dispatcher.emit(OperatorWarning(code=str(number), message="x"))
    assert [event.code for event in recorded.of(OperatorWarning)] == ["1"]


def test_the_handle_of_a_sink_may_be_replaced() -> None:
    """The dispatcher calls the present ``handle``, also of a subclass of a built-in sink."""
    seen: list[str] = []

    class Mine(LogSink):
        def handle(self, event: Event) -> None:
            seen.append(type(event).__name__)

    first, second = RecordingSink(), RecordingSink()
    dispatcher = SinkDispatcher([first, Mine()])
    dispatcher.emit(OperatorWarning(code="1", message="x"))
    first.handle = second.handle  # type: ignore[method-assign]
    dispatcher.emit(OperatorWarning(code="2", message="x"))
    assert [event.code for event in first.of(OperatorWarning)] == ["1"]
    assert [event.code for event in second.of(OperatorWarning)] == ["2"]
    assert seen == ["OperatorWarning"] * 2


def test_a_sink_without_handle_does_not_fail_the_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The mistake is logged, once."""

    class Empty:
        inline = True

    run_virtual(ask(Empty()))
    assert caplog.messages.count("sink Empty failed: AttributeError") == 1


def test_the_time_of_a_sink_does_not_count_as_the_providers() -> None:
    """A slow inline sink uses up neither the time limit of a request nor its latency."""

    class Slow:
        inline = True

        def handle(self, event: Event) -> None:
            if isinstance(event, AttemptStarted):
                loop = asyncio.get_running_loop()
                assert isinstance(loop, VirtualTimeLoop)
                loop.advance(0.5)

    async def main() -> None:
        recorded = RecordingSink()
        settings = Settings(
            routes="google:gemini-3-pro-image", per_call_timeout=1.2, on_timeout="abandon",
            max_retries=0,
        )  # fmt: skip
        google = FakeProvider("google", latency=1.0)
        async with ImageClient(settings, providers=[google], sinks=[Slow(), recorded]) as client:
            await client.generate("a lighthouse")
        (attempt,) = recorded.attempts
        assert attempt.latency_s == pytest.approx(1.0)

    run_virtual(main())


def test_the_recording_sink_selects_events() -> None:
    """It returns events by type, the latest of a type, attempts and calls, until it is cleared."""
    record = RecordingSink()
    run_virtual(ask(record))
    assert record.kinds[-4:] == ["RequestStarted", "AttemptStarted", "AttemptEnded", "RequestEnded"]
    assert record.of(AttemptEnded) == record.attempts
    assert record.last(RequestEnded) is record.calls[-1]
    with pytest.raises(LookupError, match="OperatorWarning"):
        record.last(OperatorWarning)
    record.clear()
    assert record.events == []


LATER = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from resilient_imagen import ImageClient, Settings
from resilient_imagen.testing import FakeProvider, run_virtual

async def main():
    exporter, reader, tracers = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    settings = Settings(routes="google:gemini-3-pro-image")
    async with ImageClient(settings, providers=[FakeProvider("google")]) as client:
        await client.generate("a lighthouse")
        trace.set_tracer_provider(tracers)
        metrics.set_meter_provider(MeterProvider([reader]))
        await client.generate("a lighthouse")
        scopes = reader.get_metrics_data().resource_metrics[0].scope_metrics
        points = {m.name: m.data.data_points for scope in scopes for m in scope.metrics}
        print(len(exporter.get_finished_spans()), points["imagegen.operation.attempts"][0].count)

run_virtual(main())
"""


def test_providers_may_be_set_after_the_client_was_made() -> None:
    """From the next call on, spans and metrics use the new providers."""
    done = subprocess.run(
        [sys.executable, "-c", LATER], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("2 1\n", "")


def test_an_event_is_a_frozen_dataclass_with_its_defaults() -> None:
    """Fields of an event have defaults, can be replaced but not assigned, and appear in its
    repr.
    """
    event = warned(1)
    assert event == warned(1) != warned(2)
    assert event.call_id == ""
    assert dataclasses.replace(event, code="other").code == "other"
    assert repr(event) == "OperatorWarning(at=1.0, call_id='', code='n', message='1')"
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.code = "x"  # type: ignore[misc]


def test_an_attempt_has_the_fields_of_the_objects_that_it_carries() -> None:
    """The fields of carried objects can be read and replaced, but not assigned or passed."""
    record = RecordingSink()
    run_virtual(ask(record))
    (event,) = record.attempts
    sent, attempt, settlement = event.sent, event.attempt, event.settlement
    assert sent is record.last(AttemptStarted)
    assert (event.number, event.limit, event.queue_s) == (sent.number, sent.limit, sent.queue_s)
    assert (event.latency_s, event.usage) == (attempt.latency_s, attempt.usage)
    assert (event.counted, event.breaker) == (settlement.counted, settlement.metrics)
    assert dataclasses.replace(event, status=203).number == event.number
    assert "number=1" in repr(event)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.number = 2  # type: ignore[misc]


def test_the_default_time_of_an_event_is_now() -> None:
    """The default time is that of the running loop, else of the monotonic clock."""

    async def main() -> tuple[float, float]:
        await asyncio.sleep(1000)
        return asyncio.get_running_loop().time(), OperatorWarning(code="n", message="x").at

    loop_time, at = run_virtual(main())
    assert at == loop_time
    assert OperatorWarning(code="n", message="x").at <= time.monotonic()


def test_a_sink_can_be_added_to_a_client_in_use() -> None:
    """An inline or background sink gets the events from then on, beside the existing sinks."""

    async def main() -> None:
        class Background(RecordingSink):
            inline = False

        first, inline, background = RecordingSink(), RecordingSink(), Background()
        providers = [FakeProvider("google"), FakeProvider("openai")]
        async with ImageClient(Settings(), providers=providers, sinks=[first]) as client:
            await client.generate("a lighthouse")
            before = len(first.events)
            client.add_sink(inline)
            client.add_sink(background)
            await client.generate("a lighthouse")
        assert inline.events
        assert inline.events == first.events[before:]
        assert {type(event) for event in background.events} == {
            type(event) for event in inline.events
        }

    run_virtual(main())
