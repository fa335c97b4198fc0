"""The commands `tune` and `tune what-if` on one small recording: text, page and JSON agree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_kit import cli
from tuning_kit import ROOMY, bad, world

from resilient_imagen import Settings
from resilient_imagen.tuning import Recorder, waves
from resilient_imagen.tuning.rows import Row, to_json
from resilient_imagen.tuning.simulation import play


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a recording with three outages and a breaker that stayed open for too long."""
    scenario = world(*waves(bad(0.1, 2), every=720, times=3), hours=0.7, per_minute=3)
    rows: list[Row] = []
    settings = Settings(**ROOMY, breaker_reset_timeout=400)
    play(scenario, settings, seed=1, sinks=[Recorder(rows.append)])
    path = tmp_path_factory.mktemp("log") / "calls.jsonl"
    path.write_text("".join(to_json(row) + "\n" for row in rows))
    return path


def test_text_page_and_json_report_one_sweep(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each recommended line is in all three, with the verdict and the recorded settings."""
    page, results = tmp_path / "report.html", tmp_path / "results.json"
    few = ("--settings", 4, "--workers", 1)
    done = cli(capsys, "tune", log, *few, "--html", page, "--json", results)
    assert (done.code, done.err) == (0, f"report: {page}\n")
    found = json.loads(results.read_text())
    assert found["matches"] is True
    assert found["settings"]["IMAGE_GEN_BREAKER_RESET_TIMEOUT"] == "400"
    lines = [line for line in done.out.splitlines() if line.startswith("IMAGE_GEN_")]
    recommended = [
        f"{name}={value}"
        for each in found["objectives"].values()
        if each["recommended"]
        for name, value in each["settings"].items()
    ]
    assert recommended
    assert set(lines) == set(recommended)
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert all(line in text for line in lines)


def test_what_if_reports_a_setting_that_was_never_used(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A breaker that opens after eight failures wastes more requests: sentence, table and JSON."""
    results = tmp_path / "results.json"
    change = "IMAGE_GEN_BREAKER_FAIL_MAX=8"
    done = cli(capsys, "tune", "what-if", log, "--set", change, "--json", results)
    assert done.code == 0, done.err
    assert change in done.out
    found = json.loads(results.read_text())
    assert found["matches"] is True
    columns = ("recorded", "replayed", "what_if")
    wasted = {name: found[name]["wasted_requests"]["value"] for name in columns}
    assert wasted["what_if"] > 1.3 * wasted["recorded"]
    increase = f"wasted requests from {wasted['replayed']:.0f} to {wasted['what_if']:.0f}"
    assert found["verdict"].startswith(f"{change} changes ")
    assert increase in found["verdict"]
    assert " ".join(done.out.split()).startswith(found["verdict"])
    assert re.search(rf"wasted requests\W+{wasted['recorded']:.0f}\b", done.out)


def test_what_if_answers_that_nothing_differs(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting without effect has equal measures, and the answer is about all of them."""
    results = tmp_path / "results.json"
    change = "IMAGE_GEN_BREAKER_FAIL_MAX=3"
    done = cli(capsys, "tune", "what-if", log, "--set", change, "--json", results)
    assert done.out.startswith(f"{change}: no measure differs beyond its interval.")
    assert json.loads(results.read_text())["verdict"] == done.out.splitlines()[0]


def test_what_if_mentions_little_evidence(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer about a part with few calls names their number."""
    short = tmp_path / "short.jsonl"
    short.write_text("".join(log.read_text().splitlines(keepends=True)[:60]))
    done = cli(capsys, "tune", "what-if", short, "--set", "IMAGE_GEN_BREAKER_FAIL_MAX=3")
    answer = " ".join(done.out.split())
    assert "its interval. There is little evidence for this. Only " in answer


def test_what_if_gives_no_answer_if_the_replay_differs(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is concluded from a replay of wrong settings."""
    results, plain = tmp_path / "results.json", tmp_path / "plain.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    plain.write_text("".join(line for line in lines if "configured" not in line))
    wrong = tmp_path / "wrong.env"
    wrong.write_text("IMAGE_GEN_BREAKER_RESET_TIMEOUT=5\n")
    change = ("--env-file", wrong, "--set", "IMAGE_GEN_BREAKER_FAIL_MAX=8")
    done = cli(capsys, "tune", "what-if", plain, *change, "--json", results)
    verdict = json.loads(results.read_text())["verdict"]
    assert verdict == "No answer yet: a replay of your settings does not give what was recorded."
    assert done.out.startswith(verdict)
