"""Every command in a guide is run as it is written, or is listed here with a reason."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest
import structlog
from cli_kit import environment, started
from readme_kit import GUIDES, Guide, guide_of, searches
from redis_kit import redis_server
from trace_backends import collector, jaeger
from tuning_kit import ROOMY, bad, world

from resilient_imagen import Settings, sync
from resilient_imagen.telemetry.logs import LogSink
from resilient_imagen.testing import TINY_PNG, FakeProvider
from resilient_imagen.tuning.simulation import play

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

NOT_RUN = {
    "python3 -m venv": "installs from a package index: .ci/run runs both lines as they stand",
    "pip install": "installs from a package index; the tests are run with what it names",
    "docker run": "needs a container runtime, and an image from the network",
    '"$(.ci/jaeger)"': "serves until it is stopped, and may first build for minutes",
    ".ci/": "runs these tests",
    "python -m benchmarks": "takes long; test_benchmarks.py runs its parts",
    "python benchmarks/": "takes long; test_benchmarks.py runs its parts",
    "python tests/support/readme_tables": "writes the guides; test_guides.py compares their tables",
    "python tests/support/tuning_accuracy": "takes five minutes; test_accuracy.py runs its parts",
    "resilient-imagen --install-completion": "changes the user's shell; see tests/cli",
    "resilient-imagen dashboard": "serves until it is stopped; see tests/dashboard",
    "resilient-imagen demo --vertex": "takes as long as the other demo; see tests/cli",
    "python -m resilient_imagen": "starts the same command line; see tests/cli",
}
QUERY, OTLP = "http://127.0.0.1:16686", "http://127.0.0.1:4318"
APPLICATION = """
import asyncio
from resilient_imagen import generate_image

asyncio.run(generate_image("a lighthouse"))
"""

Shell = Callable[..., str]


def to_run(guide: Guide) -> list[str]:
    """Return a guide's commands, without those that are not run."""
    return [line for line in guide.commands() if not line.startswith(tuple(NOT_RUN))]


CLI, TELEMETRY, TUNING = map(guide_of, ("cli", "telemetry", "tuning"))
DISTRIBUTED, CONTROL, MONITORING = map(guide_of, ("distributed", "control", "monitoring"))
COMMAND_LINE = [line for block in CLI.samples("bash") for line in block.splitlines()]
RUNBOOK = TELEMETRY.samples("bash", heading="Runbook")[0].splitlines()[1:]  # after the variable
RUN = [
    *COMMAND_LINE,
    *chain.from_iterable(map(to_run, (TELEMETRY, TUNING, DISTRIBUTED, CONTROL, MONITORING))),
]
"""Commands that the tests below run."""


def test_every_command_is_run_or_has_a_reason() -> None:
    """A command that no test runs is listed with a reason, and the list has no other commands."""
    shown = [line for guide in GUIDES.values() for line in guide.commands()]
    left = [line for line in shown if not any(each.startswith(line) for each in RUN)]
    assert [line for line in left if not line.startswith(tuple(NOT_RUN))] == []
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in left)] == []


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run a line in an empty directory, with this Python and the command on the path."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("resilient-imagen", "-m resilient_imagen"), ("python", "")):
        file = programs / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        file.chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])

    def run(line: str, **env: str) -> str:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=environment({"PATH": path, **env}),
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr)
        return done.stdout

    return run


@pytest.mark.ci
@pytest.mark.timeout(400)  # five processes and a demo, on a machine that may be busy
def test_the_command_line(tmp_path: Path) -> None:
    """The commands of the block run one after the other, in an empty directory."""
    (example,) = re.findall(r"`(\{\"prompt\".*?\})`", CLI.text)
    (tmp_path / "prompts.jsonl").write_text(example)
    (tmp_path / "fox.png").write_bytes(TINY_PNG)
    for line in COMMAND_LINE:
        name, *arguments = shlex.split(line)
        assert name == "resilient-imagen"
        with started(*arguments, cwd=tmp_path) as process:
            if arguments[0] == "emulate":
                assert process.stderr is not None
                assert "Ctrl-C" in process.stderr.readline()
                process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=150)
            assert process.returncode == 0, (line, errors)
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*g")}
    assert made == {
        "demo.jpg", "fox.png", "lighthouse.jpg", "night.png", "pictures/scene-1.jpg",
    }  # fmt: skip


@pytest.mark.ci
@pytest.mark.timeout(400)  # a demo, and more processes
@pytest.mark.usefixtures("imagen_emulator")
def test_commands_that_send_traces(shell: Shell, tmp_path: Path) -> None:
    """The demo, one image, and an application without code for tracing send traces."""
    (tmp_path / "app.py").write_text(APPLICATION)
    sending = [line for line in to_run(TELEMETRY) if not line.startswith(("curl", *RUNBOOK))]
    assert len(sending) == 3
    with collector() as traces:
        for line in sending:
            shell(line.replace(OTLP, traces.otlp), **pointing(QUERY, traces.otlp))
    for tags in searches():
        assert traces.find("resilient-imagen", tags), tags
    roots = Counter(name for name, span in traces.received if span.name == "imagegen.generate")
    assert (roots.pop("resilient-imagen"), sum(roots.values())) == (32 + 1, 1)


def pointing(query: str, otlp: str) -> dict[str, str]:
    """Return the variables that the guide describes: where to send traces, and nothing else."""
    only_traces = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    demo = {"JAEGER_URL": query, "JAEGER_OTLP_URL": otlp}
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp, **demo, **only_traces}


@pytest.mark.ci
@pytest.mark.jaeger
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.timeout(400)
def test_commands_that_query_jaeger(shell: Shell, tmp_path: Path) -> None:
    """After a demo every search finds calls, both requests are answered, and the tuner gets and
    saves a recording.
    """
    (demo,) = [line for line in to_run(TELEMETRY) if "demo" in line]
    by_pages, documented = [line for line in to_run(TELEMETRY) if line.startswith("curl")]
    tunes = [line for line in to_run(TUNING) if "tune --jaeger" in line]
    with jaeger() as backend:
        shell(demo, **pointing(backend.url, backend.otlp))
        give_up = time.monotonic() + 60
        for tags in searches():
            while not backend.find("resilient-imagen", tags):
                assert time.monotonic() < give_up, f"nothing is found by {tags}"
                time.sleep(0.05)  # Jaeger stores asynchronously
        found = json.loads(shell(by_pages.replace(QUERY, backend.url)))["data"]
        assert found
        for trace in found:
            tags = {tag["key"]: tag["value"] for span in trace["spans"] for tag in span["tags"]}
            assert tags["imagegen.fallback.cause"] == "circuit_open"
        assert json.loads(shell(documented.replace(QUERY, backend.url)))["result"]["resourceSpans"]
        # The guide's service is an application's; the demo's is our own.
        for tune in tunes:
            line = tune.replace("--service storyboards", "--service resilient-imagen")
            printed = shell(line.replace(QUERY, backend.url))
            assert re.search(r"google:gemini-3-pro-image: \d+ requests were recorded", printed)
    assert '"outcome":"success"' in (tmp_path / "demo.jsonl").read_text(encoding="utf-8")


def test_files_for_prometheus_and_grafana(shell: Shell, tmp_path: Path) -> None:
    """The command writes both files."""
    (write,) = to_run(MONITORING)
    written = shell(write).split()
    assert [Path(name).name for name in written] == ["alerts.yml", "dashboard.json"]
    assert all((tmp_path / name).stat().st_size for name in written)


@pytest.mark.ci
@pytest.mark.redis
@pytest.mark.usefixtures("imagen_emulator")
def test_the_commands_about_shared_state(shell: Shell, tmp_path: Path) -> None:
    """With the guide's variable an application shares its state, and the command shows it."""
    (tmp_path / "app.py").write_text(APPLICATION)
    (block,) = DISTRIBUTED.samples("bash")
    name, _, url = block.strip().partition("=")
    (line,) = to_run(DISTRIBUTED)
    with redis_server("--requirepass", "password") as server:
        env = {name: url.replace("host:6379", f"127.0.0.1:{server.port}")}
        assert env[name] != url
        shell("python app.py", **env)
        printed = shell(line, **env)
    assert "google:gemini-3-pro-image" in printed
    assert "closed" in printed
    (header,) = re.findall(r"^┃ (route .*) ┃$", printed, re.MULTILINE)
    explained = re.findall(r"^\| `([a-z ]+)` \|", CLI.section("Status"), re.MULTILINE)
    assert explained == [*(name.strip() for name in header.split("┃")), "step"]


def test_commands_that_write_a_control_file(shell: Shell) -> None:
    """The order is written and shown."""
    write, show = [line for line in to_run(CONTROL) if "--control-file" in line]
    assert "one that reads it obeys within a second" in shell(write)
    assert "breaker open google, ordered by" in shell(show)


@pytest.mark.ci
@pytest.mark.redis
def test_commands_that_a_fleet_obeys(shell: Shell) -> None:
    """A running worker obeys the order of each line."""
    *orders, show = CONTROL.samples("bash")[0].splitlines()
    with redis_server() as server:
        settings = Settings(redis_url=server.url)
        providers = [FakeProvider("google"), FakeProvider("openai")]
        with sync.ImageClient(settings, providers=providers) as client:
            client.warm_up()
            for line in orders:
                assert "1 of 1 worker obeys" in shell(line, IMAGE_GEN_REDIS_URL=server.url)
            status, *orders = RUNBOOK
            assert "google:gemini-3-pro-image" in shell(status, IMAGE_GEN_REDIS_URL=server.url)
            for line in orders:
                assert "1 of 1 worker obeys" in shell(line, IMAGE_GEN_REDIS_URL=server.url)
            assert "orders of Redis at" in shell(show, IMAGE_GEN_REDIS_URL=server.url)


@pytest.fixture
def application_log(tmp_path: Path) -> Iterator[None]:
    """Write ``app.log``: half an hour with an outage, as an application's structlog does."""
    with (tmp_path / "app.log").open("w", encoding="utf-8") as lines:
        structlog.configure(
            processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
            logger_factory=structlog.WriteLoggerFactory(lines),
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        )
        play(world(bad(0.1, 6), hours=0.5), Settings(**ROOMY), seed=1, sinks=[LogSink()])
    yield
    structlog.reset_defaults()


@pytest.mark.ci
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("application_log")
def test_commands_that_read_a_log(shell: Shell, tmp_path: Path) -> None:
    """The commands print recommendations, write a report, and add up the costs."""
    tune, compare, cost = [line for line in to_run(TUNING) if "--jaeger" not in line]
    printed = shell(tune)
    for leaning in ("fast", "cheap"):
        assert f"# {leaning}" in printed
    assert "</html>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["matches"]
    assert re.search(r"recorded .* replayed", shell(compare))
    assert re.search(r"\d+ calls in 0\.5 hours\n(?:.*\n)*.* \d+\.\d\d ", shell(cost))
