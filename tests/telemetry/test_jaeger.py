"""Operators' searches by tags, in a real Jaeger and in a collector in memory."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the otel extra")

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from paths import ROOT
from trace_backends import Backend, StoredTrace, collector, jaeger, matching

from resilient_imagen import ImageClient, Reason, Settings
from resilient_imagen.telemetry.events import RequestEnded, RequestStarted
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual

MADE: dict[str, Callable[[], AbstractContextManager[Backend]]] = {
    "memory": collector,
    "jaeger": jaeger,
}


@dataclass
class Evidence:
    """A backend with the spans of an outage, and the events of the same calls."""

    backend: Backend
    service: str
    events: RecordingSink

    def spans(self, **tags: str) -> list[StoredTrace]:
        """Return the spans that a search by these tags is for; ``__`` is a dot."""
        wanted = {key.replace("__", "."): value for key, value in tags.items()}
        return matching(self.backend.find(self.service, wanted), wanted)

    def calls(self, **tags: str) -> set[str]:
        return {span.tags["imagegen.call_id"] for span in self.spans(**tags)}

    def really(self, question: Callable[[RequestEnded], bool]) -> set[str]:
        return {ended.call_id for ended in self.events.of(RequestEnded) if question(ended)}


async def run_outage(sink: RecordingSink, tracers: TracerProvider) -> None:
    """Run an outage, its end, a retried error, a timeout, and queued callers."""
    google, openai = FakeProvider("google"), FakeProvider("openai", latency=2.0)
    async with ImageClient(
        Settings(), providers=[google, openai], sinks=[sink], tracer_provider=tracers
    ) as client:
        google.fail(Reason.OVERLOADED, status=503, times=3)
        await client.generate("opens the breaker, is served by OpenAI")
        await client.generate("is skipped past the open breaker")
        await asyncio.sleep(120)
        await client.generate("is the probe that closes the breaker")
        google.fail(Reason.SERVER_ERROR, status=500, times=1)
        await client.generate("is served after one retry")
        await asyncio.sleep(120)
        google.hang(times=1)
        await client.generate("times out, is served by OpenAI")
        await asyncio.sleep(120)
        await asyncio.gather(*(client.generate("waits for its turn") for _ in range(3)))


@pytest.fixture(scope="module", params=["memory", pytest.param("jaeger", marks=pytest.mark.jaeger)])
def evidence(request: pytest.FixtureRequest) -> Iterator[Evidence]:
    """Export the outage over OTLP, and provide the backend."""
    with pytest.MonkeyPatch.context() as patch, MADE[request.param]() as backend:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        service = f"imagegen-test-{secrets.token_hex(4)}"
        tracers = TracerProvider(resource=Resource({"service.name": service}))
        exporter = OTLPSpanExporter(endpoint=f"{backend.otlp}/v1/traces", timeout=10)
        tracers.add_span_processor(BatchSpanProcessor(exporter))
        sink = RecordingSink()
        run_virtual(run_outage(sink, tracers))
        tracers.shutdown()
        found = Evidence(backend, service, sink)
        give_up = time.monotonic() + 60
        while len(found.calls(imagegen__provider__primary="google")) != len(sink.calls):
            assert time.monotonic() < give_up, "the backend does not show what it was sent"
            time.sleep(0.05)  # it stores asynchronously
        yield found


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            """echo '{"Error": "proxy: connection refused"}'; exit 1""",
            "proxy: connection refused\nno Jaeger: the build failed; it needs Go 1.24.6 or newer, ",
        ),
        (None, "no Jaeger: none on PATH or at JAEGER_URL, and no Go to build one"),
    ],
)
def test_a_jaeger_that_cannot_be_built_is_explained(
    answer: str | None, says: str, tmp_path: Path
) -> None:
    """The script passes on the cause that Go gives as a part of JSON."""
    script = ROOT / ".ci" / "jaeger"
    if not script.exists():
        pytest.skip("no .ci/jaeger")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "mktemp", "rm", "sed"):
        (tools / name).symlink_to(shutil.which(name) or "")
    if answer is not None:
        (tools / "go").write_text(f"#!/bin/sh\n{answer}\n")
        (tools / "go").chmod(0o755)
    env = {"PATH": str(tools), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(script)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert sorted(tmp_path.iterdir()) == [tools]


def test_every_call_is_one_trace_with_one_root(evidence: Evidence) -> None:
    """The number of traces is that of the calls, and every other span is below its call's root."""
    traces = evidence.backend.find(evidence.service, {})
    assert len(traces) == len(evidence.events.of(RequestStarted)) == 8
    for trace in traces:
        (root,) = [span for span in trace if span.name == "imagegen.generate"]
        others = [span for span in trace if span is not root]
        assert others
        assert {span.parent_id for span in others} == {root.span_id}
        assert not any("@jaeger@warnings" in span.tags for span in trace)


@pytest.mark.parametrize("cause", [Reason.OVERLOADED, Reason.CIRCUIT_OPEN, Reason.TIMEOUT])
def test_fallbacks_are_found_by_their_cause(evidence: Evidence, cause: Reason) -> None:
    """The root span has the reason of the fallback and the serving provider."""
    expected = evidence.really(lambda ended: ended.fallback_cause is cause)
    assert expected
    assert evidence.calls(imagegen__fallback__cause=str(cause)) == expected
    both = {"imagegen__fallback__cause": str(cause)}
    assert evidence.calls(imagegen__provider__served="openai", **both) == expected
    assert evidence.calls(imagegen__provider__served="google", **both) == set()


def test_calls_served_by_openai_are_found(evidence: Evidence) -> None:
    """Calls are found by the provider that served, with or without fallback."""
    expected = evidence.really(
        lambda ended: ended.result is not None and ended.result.provider == "openai"
    )
    assert len(expected) == 3
    assert evidence.calls(imagegen__provider__served="openai") == expected


def test_calls_that_waited_for_the_rate_limit_are_found(evidence: Evidence) -> None:
    """A boolean tag finds calls that waited, because durations cannot be searched."""
    expected = evidence.really(lambda ended: ended.queue_s >= 0.01)
    assert len(expected) >= 2
    roots = [
        span
        for span in evidence.spans(imagegen__queue__waited="true")
        if "imagegen.call_id" in span.tags
    ]
    assert {span.tags["imagegen.call_id"] for span in roots} == expected
    assert all(float(span.tags["imagegen.queue_s"]) >= 0.01 for span in roots)


def test_a_retried_call_differs_from_a_fallback(evidence: Evidence) -> None:
    """A search finds calls with one retry and no fallback."""
    found = evidence.spans(imagegen__retries="1", imagegen__fallback__used="false")
    assert [span.tags["imagegen.provider.served"] for span in found] == ["google"]
    (failed,) = evidence.spans(error__type="server_error", imagegen__attempt__will_retry="true")
    assert failed.trace_id == found[0].trace_id


def test_the_attempt_that_opened_the_breaker_is_found(evidence: Evidence) -> None:
    """The attempt has the transition and the breaker's counts."""
    (opener,) = evidence.spans(imagegen__circuit_breaker__transition="closed_to_open")
    assert opener.name == "generate_content gemini-3-pro-image"
    assert opener.tags["imagegen.attempt.number"] == "3"
    assert opener.tags["imagegen.circuit_breaker.consecutive"] == "3"
    assert opener.tags["imagegen.circuit_breaker.failure_rate"] == "1"
    assert opener.tags["error.type"] == "overloaded"


def test_short_circuits_are_linked_to_the_attempt_that_opened(evidence: Evidence) -> None:
    """A rejected span links to the attempt in another trace that opened the circuit."""
    (opener,) = evidence.spans(imagegen__circuit_breaker__transition="closed_to_open")
    (reject,) = evidence.spans(error__type="circuit_open", imagegen__provider="google")
    assert reject.name == "circuit_breaker reject google"
    assert reject.links == ((opener.trace_id, opener.span_id),)
    assert reject.trace_id != opener.trace_id
    assert float(reject.tags["imagegen.circuit_breaker.retry_after"]) > 0


def test_the_probe_that_closed_the_breaker_is_found(evidence: Evidence) -> None:
    """A search finds the attempt that closed the circuit."""
    (probe,) = evidence.spans(
        imagegen__circuit_breaker__transition="half_open_to_closed",
        imagegen__circuit_breaker__probe="true",
    )
    assert probe.tags["imagegen.attempt.outcome"] == "success"
    assert probe.tags["imagegen.circuit_breaker.state"] == "half_open"
