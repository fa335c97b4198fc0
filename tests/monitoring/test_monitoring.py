"""Alert rules and dashboard: tests of the rules, and a real Prometheus that scrapes a client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import cli
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from ports import free_port
from prometheus_client import generate_latest, start_http_server
from prometheus_client.registry import REGISTRY

from resilient_imagen import ImageClient, ImageGenerationError, Reason, Settings
from resilient_imagen.monitoring import FILES, write_files
from resilient_imagen.testing import FakeProvider, run_virtual

SOURCE = Path(__file__).parents[2] / "resilient_imagen" / "monitoring"
RULE_TESTS = Path(__file__).parent / "alerts_test.yml"
METRIC = re.compile(r"\b(?:imagegen|gen_ai)_[a-z_]+?(?=[{\s)])")
NEEDS_PROMETHEUS = "no prometheus and promtool on PATH (apt-get install prometheus)"
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason=NEEDS_PROMETHEUS
)


def dashboard_queries() -> dict[str, str]:
    """Return the query of each panel, by its title, for all jobs and a range of 30 seconds."""
    panels = json.loads((SOURCE / "dashboard.json").read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$job", ".*")
        .replace("$__rate_interval", "30s")
        for panel in panels
        for target in panel["targets"]
    }


async def outage(client: ImageClient, google: FakeProvider, openai: FakeProvider) -> None:
    """Serve some calls, let both providers fail, and open both circuits."""
    await client.generate("a lighthouse")
    google.fail(Reason.OVERLOADED, times=3)
    for _ in range(2):
        await client.generate("a lighthouse")
    openai.fail(Reason.UNAUTHENTICATED)
    for _ in range(2):
        with contextlib.suppress(ImageGenerationError):
            await client.generate("a lighthouse")


@contextlib.contextmanager
def exported() -> Iterator[MeterProvider]:
    """Yield a meter provider whose metrics are in the registry of the Prometheus client library."""
    meters = MeterProvider([PrometheusMetricReader()])
    try:
        yield meters
    finally:
        meters.shutdown()


def providers() -> tuple[FakeProvider, FakeProvider]:
    return FakeProvider("google", latency=0.02), FakeProvider("openai", latency=0.02)


SETTINGS: dict[str, Any] = {"ipm": 600_000, "max_retries": 2, "retry_base_delay": 0.001}


def test_every_metric_of_rules_and_panels_is_exported() -> None:
    """After a metric was renamed, its alert would never fire, without an error."""
    queries = " ".join([*dashboard_queries().values(), (SOURCE / "alerts.yml").read_text(), " "])
    asked = set(METRIC.findall(queries)) - {"imagegen_operation_duration_seconds"}

    async def main(meters: MeterProvider) -> str:
        google, openai = providers()
        async with ImageClient(
            Settings(**SETTINGS), providers=[google, openai], meter_provider=meters
        ) as client:
            await outage(client, google, openai)
            return generate_latest(REGISTRY).decode()

    with exported() as meters:
        page = run_virtual(main(meters))
    labels = {"imagegen_outcome", "imagegen_fallback_used", "imagegen_provider_served"}
    names = {name for name in asked if f"\n{name}{{" in page}
    assert names >= {name for name in asked if f"{name}{{" in queries}
    assert len(names) >= 10
    assert all(f"{label}=" in page for label in labels)


@needs_prometheus
def test_the_rules_pass_their_unit_tests(tmp_path: Path) -> None:
    """Each alert fires at the expected time, and not earlier."""
    write_files(tmp_path)
    shutil.copy(RULE_TESTS, tmp_path)
    done = subprocess.run(
        ["promtool", "test", "rules", RULE_TESTS.name],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = set(re.findall(r"alert: (\w+)", (SOURCE / "alerts.yml").read_text()))
    assert alerts == set(re.findall(r"alertname: (\w+)", RULE_TESTS.read_text()))


@pytest.mark.ci
@needs_prometheus
def test_a_real_prometheus_fills_every_panel_and_evaluates_every_rule(tmp_path: Path) -> None:
    """Prometheus scrapes a running client whose circuits open; its alert becomes pending."""
    write_files(tmp_path)
    with exported() as meters:
        server, thread = start_http_server(0, addr="127.0.0.1")
        try:
            with prometheus(tmp_path, server.server_port) as ask:
                asyncio.run(asyncio.wait_for(served(meters, ask), 100))
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


async def served(meters: MeterProvider, ask: Any) -> None:
    google, openai = providers()
    async with ImageClient(
        Settings(**SETTINGS), providers=[google, openai], meter_provider=meters
    ) as client:
        await client.generate("a lighthouse")
        await until(ask, "query", {"query": "imagegen_operation_attempts_count"})
        await outage(client, google, openai)
        for title, query in dashboard_queries().items():
            assert await until(ask, "query", {"query": query}), title
        rules = (await asyncio.to_thread(ask, "rules", {}))["groups"][0]["rules"]
        assert [rule for rule in rules if rule["health"] == "err"] == []
        alerts = {"ImagegenAllRoutesOpen": "pending", "ImagegenAccountRejected": "firing"}
        while alerts:
            for alert in (await asyncio.to_thread(ask, "alerts", {}))["alerts"]:
                if alerts.get(alert["labels"]["alertname"]) == alert["state"]:
                    del alerts[alert["labels"]["alertname"]]
            await asyncio.sleep(0.05)


async def until(ask: Any, path: str, query: dict[str, str]) -> list[Any]:
    """Return the series that a query finds, as soon as there are any."""
    while True:
        found: list[Any] = (await asyncio.to_thread(ask, path, query))["result"]
        if found:
            return found
        await asyncio.sleep(0.05)


@contextlib.contextmanager
def prometheus(folder: Path, scraped: int) -> Iterator[Any]:
    """Run a Prometheus that scrapes a port; yield a function that asks its API."""
    port = free_port()
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}\n"
        "rule_files: [alerts.yml]\n"
        "scrape_configs:\n"
        f"  - {{job_name: app, static_configs: [{{targets: ['127.0.0.1:{scraped}']}}]}}\n"
    )
    command = [
        "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip

    def ask(path: str, query: dict[str, str]) -> Any:
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    ask("query", {"query": "1"})
                    break
                except OSError:
                    assert process.poll() is None, (folder / "prometheus.log").read_text()
                    assert time.monotonic() < deadline
            yield ask
        finally:
            process.terminate()
            process.wait(30)


def test_the_command_writes_the_files_and_keeps_edited_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run leaves equal files alone, and replaces edited ones only with --overwrite."""
    target = tmp_path / "new" / "monitoring"
    assert cli(capsys, "monitoring", "--write", target).code == 0
    assert {path.name for path in target.iterdir()} == set(FILES)
    assert cli(capsys, "monitoring", "--write", target).code == 0
    edited = target / "alerts.yml"
    edited.write_text("groups: []\n")
    refused = cli(capsys, "monitoring", "--write", target)
    assert refused.code != 0
    assert "--overwrite" in refused.err
    assert edited.read_text() == "groups: []\n"
    assert cli(capsys, "monitoring", "--write", target, "--overwrite").code == 0
    assert edited.read_bytes() == (SOURCE / "alerts.yml").read_bytes()


def test_a_directory_that_cannot_be_made_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in the way is named."""
    (tmp_path / "file").write_text("")
    refused = cli(capsys, "monitoring", "--write", tmp_path / "file" / "below")
    assert refused.code != 0
    assert "Traceback" not in refused.err
