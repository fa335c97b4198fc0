"""Trace backends: a collector in memory and a real Jaeger, both searchable by tags."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest
from google.protobuf.json_format import (  # type: ignore[import-untyped,unused-ignore]
    MessageToDict,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from paths import ROOT
from ports import free_ports

_PATIENCE = 60.0
"""Seconds until a started Jaeger must answer, and until sent spans must be found."""


@dataclass(frozen=True)
class StoredTrace:
    """One span as a backend returns it; tag values have the form of search input."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    tags: Mapping[str, str]
    links: tuple[tuple[str, str], ...]


class Backend(Protocol):
    """A backend that receives OTLP over HTTP and can be searched."""

    otlp: str
    """Base address for exporters."""

    def find(self, service: str, tags: Mapping[str, str]) -> list[list[StoredTrace]]:
        """Return the traces with at least one span that has all these tags."""
        ...


def matching(traces: Iterable[Iterable[StoredTrace]], tags: Mapping[str, str]) -> list[StoredTrace]:
    """Return the spans that have all these tags."""
    return [
        span
        for trace in traces
        for span in trace
        if all(span.tags.get(key) == value for key, value in tags.items())
    ]


def _spans(resource_spans: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, StoredTrace]]:
    """Yield every span of an OTLP response in JSON, with its service."""
    for resource in resource_spans:
        service = _tags(resource.get("resource", {}).get("attributes", ())).get("service.name", "")
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                yield (
                    service,
                    StoredTrace(
                        span["traceId"],
                        span["spanId"],
                        span.get("parentSpanId", ""),
                        span["name"],
                        _tags(span.get("attributes", ())),
                        tuple((link["traceId"], link["spanId"]) for link in span.get("links", ())),
                    ),
                )


def _tags(attributes: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {entry["key"]: _typed(next(iter(entry["value"].values()))) for entry in attributes}


def _typed(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _by_trace(spans: Iterable[StoredTrace]) -> dict[str, list[StoredTrace]]:
    traces: dict[str, list[StoredTrace]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    return traces


# -- in memory --------------------------------------------------------------------------------


class Collector:
    """A loopback server that receives OTLP and searches like Jaeger: all tags on one span."""

    def __init__(self, otlp: str) -> None:
        self.otlp = otlp
        self.received: list[tuple[str, StoredTrace]] = []

    def find(self, service: str, tags: Mapping[str, str]) -> list[list[StoredTrace]]:
        traces = _by_trace(span for name, span in list(self.received) if name == service)
        return [trace for trace in traces.values() if matching([trace], tags)]


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = MessageToDict(ExportTraceServiceRequest.FromString(body))
            found.received += [
                (service, _with_hex_ids(span))
                for service, span in _spans(request.get("resourceSpans", ()))
            ]
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _with_hex_ids(span: StoredTrace) -> StoredTrace:
    """Convert ids from base64, as in protobuf's JSON, to hex, as in OTLP's JSON."""
    import base64

    def hexed(value: str) -> str:
        return base64.b64decode(value).hex()

    return StoredTrace(
        hexed(span.trace_id),
        hexed(span.span_id),
        hexed(span.parent_id),
        span.name,
        span.tags,
        tuple((hexed(trace), hexed(other)) for trace, other in span.links),
    )


# -- Jaeger -----------------------------------------------------------------------------------


class Jaeger:
    """A real Jaeger, queried through version 3 of its API if that can search by tags."""

    def __init__(self, url: str, otlp: str) -> None:
        self.url, self.otlp = url, otlp
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, **query: str) -> Any:
        """Return the JSON of a response; None for a 404."""
        address = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        try:
            with self._opener.open(address, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def find(self, service: str, tags: Mapping[str, str]) -> list[list[StoredTrace]]:
        found = self._search(service, tags)
        return [self.trace(trace_id) for trace_id in sorted({span.trace_id for span in found})]

    def trace(self, trace_id: str) -> list[StoredTrace]:
        """Return every span of a trace."""
        answer = self.get(f"/api/v3/traces/{trace_id}")
        return [span for _, span in _spans(answer["result"]["resourceSpans"])]

    def _search(self, service: str, tags: Mapping[str, str]) -> list[StoredTrace]:
        if self._searches_by_tag(service):
            return self._search_v3(service, tags)
        now = time.time()
        answer = self.get(
            "/api/traces",
            service=service,
            tags=json.dumps(tags),
            start=str(int((now - 3600) * 1e6)),
            end=str(int((now + 3600) * 1e6)),
            limit="100",
        )
        return [
            StoredTrace(span["traceID"], span["spanID"], "", span["operationName"], {}, ())
            for trace in answer["data"]
            for span in trace["spans"]
        ]

    def _searches_by_tag(self, service: str) -> bool:
        """Return whether version 3 of the API searches by tags; Jaeger up to 2.13 ignores them."""
        everything = self._search_v3(service, {})
        return bool(everything) and not self._search_v3(service, {"no.such.tag": "x"})

    def _search_v3(self, service: str, tags: Mapping[str, str]) -> list[StoredTrace]:
        now = datetime.now(UTC)
        first, last = (
            (now + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ") for hours in (-1, 1)
        )
        answer = self.get(
            "/api/v3/traces",
            **{
                "query.serviceName": service,
                "query.service_name": service,
                "query.startTimeMin": first,
                "query.start_time_min": first,
                "query.startTimeMax": last,
                "query.start_time_max": last,
                "query.attributes": json.dumps(tags),
                "query.searchDepth": "100",
                "query.num_traces": "100",
            },
        )
        return [] if answer is None else [s for _, s in _spans(answer["result"]["resourceSpans"])]


@contextmanager
def jaeger() -> Iterator[Jaeger]:
    """Use the Jaeger at JAEGER_URL, or start one on free ports; skip if it is not installed."""
    found = _found()
    if found.startswith("http"):
        host = urlsplit(found).hostname
        yield Jaeger(
            found.rstrip("/"), os.environ.get("JAEGER_OTLP_URL", f"http://{host}:4318").rstrip("/")
        )
        return
    query, otlp, options = _options(two=Path(found).name == "jaeger")
    process = subprocess.Popen(
        [found, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OTEL_TRACES_SAMPLER": "always_off"},
    )
    server = Jaeger(f"http://127.0.0.1:{query}", f"http://127.0.0.1:{otlp}")
    try:
        _wait_for(server)
        assert process.poll() is None, "something else answers on Jaeger's ports"
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _options(*, two: bool) -> tuple[int, int, list[str]]:
    """Choose free ports for queries and for OTLP; return them and a command line that sets them."""
    if two:
        query, grpc, otlp = free_ports(3)
        config = {
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {
                    "traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}
                },
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "error"}},
            },
            "extensions": {
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 100_000}}}},
                "jaeger_query": {
                    "storage": {"traces": "memory"},
                    "http": {"endpoint": f"127.0.0.1:{query}"},
                    "grpc": {"endpoint": f"127.0.0.1:{grpc}"},
                },
            },
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{otlp}"}}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        }
        return query, otlp, [f"--config=yaml:{json.dumps(config)}"]  # JSON is YAML
    ports = iter(free_ports(8))
    query, otlp = next(ports), next(ports)
    places = {
        "query.http-server": query,
        "collector.otlp.http": otlp,
        **dict.fromkeys(("admin.http", "query.grpc-server"), 0),
        **dict.fromkeys(("collector.grpc-server", "collector.http-server"), 0),
        "collector.otlp.grpc": 0,
    }
    options = [
        f"--{name}.host-port=127.0.0.1:{port or next(ports)}" for name, port in places.items()
    ]
    return query, otlp, [*options, "--log-level=error"]


def _found() -> str:
    script = ROOT / ".ci" / "jaeger"
    if not script.exists():
        pytest.skip("no Jaeger: .ci/jaeger, which finds one, is not here")
    done = subprocess.run(
        [str(script), "--found"], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0:
        pytest.skip(done.stderr.strip())
    return done.stdout.strip()


def _wait_for(server: Jaeger) -> None:
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            server.get("/api/v3/services")
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)  # a process is starting; there is nothing else to wait for
        else:
            return
