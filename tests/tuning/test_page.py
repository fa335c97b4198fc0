"""The report: what it says, and that a real browser shows it without a network."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from tuning_kit import ROOMY, bad, record, world

from resilient_imagen import Reason, Settings
from resilient_imagen.tuning import Recording, Sweep, sweep, waves
from resilient_imagen.tuning.recording import Attempted, Row

pytest.importorskip("vl_convert", reason="needs the tuning extra")

from resilient_imagen.tuning.charts import pareto, timeline
from resilient_imagen.tuning.replay import replay
from resilient_imagen.tuning.report_html import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def tuned() -> tuple[Sweep, Recording, Settings]:
    """A small sweep over a recording with an outage."""
    settings = Settings(**ROOMY, breaker_reset_timeout=400)
    often = world(*waves(bad(0.2, 4), every=1200, times=8), hours=3, per_minute=4)
    recording = record(often, settings)
    return sweep(recording, settings, count=8, workers=1), recording, settings


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
    assert any(advice.recommended for advice in found.advice.values())
    for advice in found.advice.values():
        if advice.recommended:
            assert "\n".join(advice.trial.knobs.env_lines(found.today.knobs)) in text
    assert text.count("rest on what was not seen") == 3


def test_the_page_shows_what_is_compared_and_what_is_left_out() -> None:
    """Each provider's share, the defaults beside today's settings, and a breaker that is off."""
    today = Settings(**ROOMY, breaker_mode="off", breaker_fail_max=2, force_open="openai")
    recording = record(world(bad(0.1, 5), hours=0.4), Settings(**ROOMY))
    text = html.unescape(page(sweep(recording, today, count=4, workers=1), recording, today))
    assert "<th>recorded</th><th>replayed</th>" in text
    assert "<td>by the first route</td>" in text
    assert "IMAGE_GEN_BREAKER_MODE is off: the recording is replayed so" in text
    assert "IMAGE_GEN_FORCE_OPEN (openai) is left out" in text


def test_nothing_in_a_recording_can_end_the_page() -> None:
    """A route's name with markup in it is shown, not obeyed."""
    evil = "google:</script><script>alert(1)</script>"
    rows: list[Row] = [Attempted(1e9 + at, str(at), evil, 5.0) for at in range(0, 600, 10)]
    from resilient_imagen.settings import RouteName
    from resilient_imagen.tuning.recording import gather

    settings = Settings().model_copy(update={"routes": (RouteName(evil),)})
    recording = gather(rows)
    text = page(sweep(recording, settings, count=2, workers=1), recording, settings)
    assert "<script>alert" not in text


def test_the_timeline_adds_up(tuned: tuple[Sweep, Recording, Settings]) -> None:
    """Bars hold every image and every doomed request; the breaker's states have no gap."""
    _, recording, settings = tuned
    played, truth = replay(recording, settings)
    states, bars = timeline(played, truth.incidents(), recording.origin)["vconcat"][:2]
    counted = sum(each["count"] for each in bars["data"]["values"])
    assert counted == sum(each.reason is not Reason.CANCELLED for each in played.sent)
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


@pytest.mark.ci
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
