"""The command ``demo``: its images, its report about the breaker, and its traces."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx2
import pytest
from cli_kit import cli, run
from PIL import Image
from ports import free_port
from rich.console import Console
from trace_backends import collector

from resilient_imagen.cli import client_session, demo_scenario
from resilient_imagen.cli.demo_scenario import PHASES, SCENES, DemoImage, DemoRun
from resilient_imagen.cli.demo_view import show_breaker, watching
from resilient_imagen.emulator import Emulator

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all times of the demo."""
    usual: Callable[..., dict[str, object]] = demo_scenario.demo_settings

    def settings(*, vertex: bool) -> dict[str, object]:
        times = {"per_call_timeout": 1.5, "breaker_reset_timeout": 0.5, "breaker_reset_max": 0.9}
        return {**usual(vertex=vertex), **times, "ipm": 6000, "retry_base_delay": 0.02}

    monkeypatch.setattr(demo_scenario, "demo_settings", settings)
    emulator = partial(Emulator, picture="tiny", latency=0.05)
    monkeypatch.setattr(demo_scenario, "demo_emulator", emulator)


@pytest.mark.usefixtures("quick")
def test_vertex_ai_serves_while_the_gemini_api_cannot(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vertex AI, as a second endpoint of the model, serves before OpenAI; variables are ignored."""
    monkeypatch.setenv("VERTEX_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "not-this-one")
    ended = cli(capsys, "demo", "--vertex", "-o", tmp_path / "sheet.png")
    assert (ended.code, ended.err) == (0, "")
    assert served(ended.out, "overloaded") == served(ended.out, "hanging") == ["vertex"] * 8
    assert "32 of 32 images were delivered" in ended.out


def served(out: str, phase: str) -> list[str]:
    """Return the provider of each line about an image of the phase."""
    return re.findall(rf"^Google {phase} +scene \d  (\w+) [0-9.]+ s", out, re.MULTILINE)


@pytest.mark.usefixtures("quick")
def test_the_report_of_a_run(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal it has a line for each image, and the breaker's transitions."""
    monkeypatch.setenv("IMAGE_GEN_FORCE_OPEN", "openai")
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "sheet.png").symlink_to(victim)
    ended = cli(capsys, "demo", "-o", tmp_path / "sheet.png")
    assert (ended.code, ended.err) == (0, "")
    assert victim.read_bytes() == b"precious"  # the link was replaced, not followed
    assert served(ended.out, "healthy") == ["google"] * 8
    assert served(ended.out, "overloaded") == served(ended.out, "hanging") == ["openai"] * 8
    assert len(served(ended.out, "back")) == 8
    story = ended.out.partition("What the circuit breaker of Google did:")[2]
    transitions = [
        "Google overloaded: opened for",
        "after 3 failures in a row (503 UNAVAILABLE)",
        "Google hanging: let one call through as a probe",
        "the probe failed (timed out): opened for",
        "Google back: let one call through as a probe",
        "Google back: the probe was served: closed",
        "32 of 32 images were delivered.",
    ]
    found = [story.find(transition) for transition in transitions]
    assert -1 not in found
    assert found == sorted(found)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > len(SCENES) * 100
        assert sheet.height > len(PHASES) * 200


@pytest.mark.usefixtures("quick")
@pytest.mark.ci
def test_the_contact_sheet_has_a_default_path(capsys: Capsys) -> None:
    """Without -o the sheet is saved to a new directory, and its path is printed."""
    ended = cli(capsys, "demo")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("Contact sheet: ")]
    sheet = Path(line.removeprefix("Contact sheet: "))
    assert sheet.stat().st_size > 1000
    sheet.unlink()
    sheet.parent.rmdir()


@pytest.mark.ci
def test_traces_can_be_found(tmp_path: Path) -> None:
    """--jaeger exports every call and prints links to four of them."""
    with collector() as traces:
        done = run(
            "demo", "--jaeger", "--jaeger-url", "http://me:sesame@jaeger.test:16686/",
            "--jaeger-otlp-url", traces.otlp, "-o", "sheet.jpg", cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = done.stdout
    links = dict(
        re.findall(r"^Call that (.*): http://jaeger\.test:16686/trace/(\w{32})$", out, re.MULTILINE)
    )
    roots = {
        span.trace_id: span.tags
        for service, span in traces.received
        if span.name == "imagegen.generate" and service == "resilient-imagen"
    }
    assert len(roots) == 32
    assert {what: roots[found]["imagegen.provider.served"] for what, found in links.items()} == {
        "opened the breaker": "openai",
        "was skipped past the open breaker": "openai",
        "probed in vain": "openai",
        "closed the breaker again": "google",
    }


@pytest.mark.parametrize(
    "variable",
    ["OTEL_SDK_DISABLED=true", pytest.param("OTEL_TRACES_EXPORTER=none", marks=pytest.mark.ci)],
)
@pytest.mark.usefixtures("quick")
def test_the_environment_may_refuse_traces(
    variable: str, capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo runs without links to traces, and the reason is printed."""
    monkeypatch.setenv(*variable.split("="))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.test:4318")
    ended = cli(capsys, "demo", "--jaeger", "-o", tmp_path / "sheet.png")
    assert (ended.code, ended.complaint) == (0, f"tracing is off: {variable}")
    assert "/trace/" not in ended.out


@pytest.mark.parametrize("user", ["", "user:secret@"])
def test_a_demo_does_not_begin_without_a_collector(user: str, capsys: Capsys) -> None:
    """One line has the address, without its password, the cause, and where it is set."""
    place = f"127.0.0.1:{free_port()}"
    ended = cli(capsys, "demo", "--jaeger", "--jaeger-otlp-url", f"http://{user}{place}")
    assert (ended.code, ended.out) == (2, "")
    assert ended.complaint.startswith(f"nothing takes traces at http://{place} (")
    assert "Connection refused" in ended.complaint
    assert ended.complaint.endswith("address by --jaeger-url or --jaeger-otlp-url")


@pytest.mark.parametrize("option", ["--jaeger-url", "--jaeger-otlp-url"])
@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://user:secret@host:port", "must be an address such as https://host"),
        ("http://user:secret/secret@host", "must be an address such as https://host"),
        ("http://user:1/secret@host", "must not contain an @ after the host"),
        ("user:secret@host:1", "must be an address such as https://host"),
        ("ftp://user:secret@host", "must be an address such as https://host"),
        ("http://", "must be an address such as https://host"),
        ("http://[::1", "must be an address such as https://host"),
    ],
)
def test_an_address_that_is_not_valid_is_not_shown(
    address: str, why: str, option: str, capsys: Capsys
) -> None:
    """It may contain a password, at a place that is not known. The line names the option."""
    ended = cli(capsys, "demo", "--jaeger", option, address)
    assert (ended.code, ended.out) == (2, "")
    assert ended.complaint.startswith(f"{option} {why}")
    assert "secret" not in ended.complaint


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy"])
def test_the_address_of_a_proxy_is_not_shown(
    variable: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy whose address is not valid is reported without its password."""
    monkeypatch.setenv(variable, "http://user:secret/secret@host")
    ended = cli(capsys, "demo", "--jaeger", "--jaeger-otlp-url", "http://collector.test:4318")
    assert ended.code == 2
    assert "a proxy in the environment, is not valid" in ended.complaint
    assert "secret" not in ended.complaint


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ([], {}, "http://localhost:4318/"),
        (["--jaeger-url", "https://pages:16686/jaeger"], {}, "http://pages:4318/"),
        (["--jaeger-url", "http://[::1]:16686"], {}, "http://[::1]:4318/"),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel"}, None),
        ([], {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://otel/v1/traces"}, None),
        (
            [],
            {"JAEGER_OTLP_URL": "http://env:4318", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel"},
            "http://env:4318",
        ),
        (
            ["--jaeger-otlp-url", "http://option:4318"],
            {"JAEGER_OTLP_URL": "http://env:4318"},
            "http://option:4318",
        ),
    ],
)
def test_destinations_of_traces(
    options: list[str], environment: dict[str, str], expected: str | None,
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The option comes first, then Jaeger's variable, OpenTelemetry's (None), the usual port.

    An address that is not OpenTelemetry's must answer. Traces that did not arrive have no links.
    """
    seen: list[str | None] = []
    reached: list[str] = []

    def not_arrived(main: object, *, collector: str | None, asked: bool) -> bool:
        seen.append(collector)
        return not asked

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(client_session, "run_traced", not_arrived)
    monkeypatch.setattr(httpx2, "get", lambda url, **_: reached.append(url))
    ended = cli(capsys, "demo", "--jaeger", *options, "-o", tmp_path / "sheet.png")
    assert seen == [expected]
    assert reached == ([] if expected is None else [expected])
    assert ended.out.splitlines()[-1] == "No links: not all traces arrived."


def test_an_odd_file_name_is_refused(capsys: Capsys, tmp_path: Path) -> None:
    """The name is rejected before the demo runs."""
    ended = cli(capsys, "demo", "-o", tmp_path / "sheet.docx")
    assert ended.code == 2
    assert ended.complaint.endswith("sheet.docx: the contact sheet is a .png or a .jpg")


class FakeClient:
    """The part of a client that the view reads."""

    def __init__(self, state: str, retry_after: float | None) -> None:
        self.breaker = {"state": state, "retry_after": retry_after}

    def snapshot(self) -> dict[str, object]:
        return {"routes": [{"breaker": self.breaker}]}


def shown(demo: DemoRun, client: FakeClient, width: int = 120) -> str:
    """Return the final output on a terminal."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, highlight=False)
    with watching(console, demo, client):  # type: ignore[arg-type]
        pass
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_on_a_terminal(width: int) -> None:
    """The table has requests in flight, failures and the breaker's state, and fits the width."""
    demo = DemoRun(Emulator(), phase="overloaded", waiting=True)
    demo.images[0].asking = "google"
    demo.images[8] = DemoImage("overloaded", 0, failure="out of time")
    lines = shown(demo, FakeClient("open", 1.25), width).splitlines()
    assert max(map(len, lines)) <= width
    (first,) = {line for line in lines if "│ 1 " in line}
    assert [cell.strip() for cell in first.split("│")[2:4]] == ["google ...", "out of time"]
    assert any(
        line.startswith("circuit breaker open: Google is skipped, for 1.2 s more; the next phase")
        for line in lines
    )
    assert "half open: one probe is out" in shown(demo, FakeClient("half_open", None))


def test_images_that_are_missing_are_not_counted(capsys: Capsys) -> None:
    """The closing words count delivered images only."""
    show_breaker(Console(file=sys.stdout, width=200), DemoRun(Emulator()))
    assert "0 of 32 images were delivered" in capsys.readouterr().out
