"""The command and its report: what they say, and that a real browser shows it without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from tuning_kit import ROOMY, bad, record, world

from resilient_imagen import Settings
from resilient_imagen.tuning import Recording, Sweep, sweep
from resilient_imagen.tuning.recording import Attempted, Row, to_json

pytest.importorskip("vl_convert", reason="needs the tuning extra")

from resilient_imagen.tuning.charts import pareto, timeline
from resilient_imagen.tuning.page import page
from resilient_imagen.tuning.sweep import replay

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def tuned() -> tuple[Sweep, Recording, Settings]:
    """A small sweep over a recording with an outage."""
    settings = Settings(**ROOMY, breaker_reset_timeout=240)
    recording = record(world(bad(0.5, 15), bad(1.4, 10), hours=2), settings)
    return sweep(recording, settings, count=14, workers=1), recording, settings


def test_the_page_needs_no_network(tuned: tuple[Sweep, Recording, Settings]) -> None:
    """No address is loaded by it: no script, style, image, font or frame from elsewhere."""
    text = page(*tuned)
    document = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=(?!\"data:)", document)
    assert "@import" not in document
    assert document.count("<html") == 1


def test_the_page_says_what_the_sweep_found(tuned: tuple[Sweep, Recording, Settings]) -> None:
    """Every recommended line is there to be pasted, and how much rests on the unseen."""
    found = tuned[0]
    text = html.unescape(page(*tuned))
    assert any(advice.holds for advice in found.advice.values())
    for advice in found.advice.values():
        if advice.holds:
            assert "\n".join(advice.trial.knobs.env_lines(found.today.knobs)) in text
    assert text.count("rest on what was not seen") == 3


def test_nothing_in_a_recording_can_end_the_page() -> None:
    """A route's name with markup in it is shown, not obeyed."""
    evil = "google:</script><script>alert(1)</script>"
    rows: list[Row] = [Attempted(1e9 + at, str(at), evil, 5.0) for at in range(0, 600, 10)]
    from resilient_imagen.settings import Route
    from resilient_imagen.tuning.recording import gather

    settings = Settings().model_copy(update={"routes": (Route(evil),)})
    recording = gather(rows)
    text = page(sweep(recording, settings, count=2, workers=1), recording, settings)
    assert "<script>alert" not in text


def test_the_timeline_adds_up(tuned: tuple[Sweep, Recording, Settings]) -> None:
    """Bars hold every image and every doomed request; the breaker's states have no gap."""
    _, recording, settings = tuned
    played, truth = replay(recording, settings)
    states, bars = timeline(played, truth.troubles(), recording.origin)["vconcat"][:2]
    counted = sum(each["count"] for each in bars["data"]["values"])
    assert counted == len(played.sent)
    assert all(each["high"] - each["low"] == each["count"] for each in bars["data"]["values"])
    parts = states["layer"][0]["data"]["values"]
    assert all(a["until"] == b["t"] for a, b in pairwise(parts))
    assert {"open", "closed"} <= {each["breaker"] for each in parts}


def test_the_plot_of_trades_names_the_settings(tuned: tuple[Sweep, Recording, Settings]) -> None:
    """Every trial is a point; today's and the recommended ones carry their names."""
    found = tuned[0]
    points = pareto(found)["data"]["values"]
    assert len(points) == len(found.trials)
    names = " ".join(each["name"] for each in points)
    assert all(word in names for word in ("today", "fast", "cheap", "stay"))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (apt-get install chromium)")
def test_a_real_browser_shows_it(tuned: tuple[Sweep, Recording, Settings], tmp_path: Path) -> None:
    """Chromium, cut off from any network, draws every chart and logs no error."""
    report = tmp_path / "report.html"
    report.write_text(page(*tuned), encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
            "--virtual-time-budget=20000", "--dump-dom", report.as_uri(),
        ],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    charts = re.findall(r'<div class="chart[^"]*" id="chart\d+">?', page(*tuned))
    drawn = re.findall(r"<canvas|<svg", done.stdout)
    assert len(charts) >= 3
    assert len(drawn) >= len(charts)
    assert "CONSOLE" not in done.stderr
    assert "rest on what was not seen" in done.stdout


# -- the commands ---------------------------------------------------------------------------------


def command(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "resilient_imagen.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=100, check=False, input=stdin,
    )  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved recording."""
    from resilient_imagen.tuning import Recorder
    from resilient_imagen.tuning.simulation import play

    rows: list[Row] = []
    play(world(bad(0.2, 8), hours=0.7), Settings(), seed=1, sinks=[Recorder(rows.append)])
    path = tmp_path_factory.mktemp("log") / "calls.jsonl"
    path.write_text("".join(to_json(row) + "\n" for row in rows))
    return path


def test_tune_prints_lines_to_paste_and_writes_the_report(log: Path, tmp_path: Path) -> None:
    """A table, the recommendations, the report and the recording in our own format."""
    report, saved = tmp_path / "report.html", tmp_path / "saved.jsonl"
    done = command("tune", log, "--settings", 6, "--workers", 2, "--html", report, "--save", saved)
    assert done.returncode == 0, done.stderr
    assert "# fast: " in done.stdout
    assert "rest on what was not seen" in done.stdout
    assert all(
        re.fullmatch(r"IMAGE_GEN_\w+=[\d.]+", line)
        for line in done.stdout.splitlines()
        if line.startswith("IMAGE_GEN_")
    )
    assert report.read_text().startswith("<!doctype html>")
    assert saved.read_text() == log.read_text()


def test_tune_reads_standard_input(log: Path) -> None:
    """A pipe will do."""
    done = command("tune", "-", "--settings", 2, "--workers", 1, stdin=log.read_text())
    assert done.returncode == 0, done.stderr
    assert "by first" in done.stdout


def test_cost_adds_up_what_was_spent(log: Path) -> None:
    """Images, and dollars, by route."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    images = [line for line in lines if "sent" in line and "reason" not in line]
    google = sum("google" in line["route"] for line in images)
    done = command("cost", log)
    assert done.returncode == 0, done.stderr
    assert f" {google} " in done.stdout
    assert f"{0.134 * google:.2f}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name a recording"),
        (("missing.jsonl",), "No such file"),
        (("--jaeger", "http://127.0.0.1:9"), "--service"),
        (("--jaeger", "http://127.0.0.1:9", "--service", "x"), "ConnectError"),
        (("x", "--jaeger", "y"), "name a recording"),
        (("--jaeger", "y", "--service", "x", "--lookback", "soon"), "--lookback"),
    ],
)
def test_a_wrong_command_is_one_clear_line(arguments: tuple[str, ...], says: str) -> None:
    """No traceback, an exit code, and what to do."""
    done = command("tune", *arguments)
    assert done.returncode in {1, 2}
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_broken_recording_is_named_or_skipped(log: Path, tmp_path: Path) -> None:
    """The line's number without --skip-broken, a count with it."""
    broken = tmp_path / "broken.jsonl"
    broken.write_text(log.read_text() + '{"sent": 12, "rou')
    done = command("tune", broken, "--settings", 2, "--workers", 1)
    assert done.returncode == 2
    number = len(log.read_text().splitlines()) + 1
    assert f"line {number}: " in done.stderr
    done = command("tune", broken, "--settings", 2, "--workers", 1, "--skip-broken")
    assert done.returncode == 0
    assert "broken lines skipped: 1" in done.stdout
