"""The commands `tune` and `cost`: what they print, what they refuse, and how they are stopped."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Ended, cli, run
from tuning_kit import bad, world

from resilient_imagen import Reason, Settings
from resilient_imagen.tuning import Recorder
from resilient_imagen.tuning.recording import Attempted, Row, to_json
from resilient_imagen.tuning.simulation import play

SWEEPING = import_module("resilient_imagen.tuning.sweep")  # whose name the package gives away


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved recording."""
    rows: list[Row] = []
    play(world(bad(0.1, 6), hours=0.35), Settings(), seed=1, sinks=[Recorder(rows.append)])
    path = tmp_path_factory.mktemp("log") / "calls.jsonl"
    path.write_text("".join(to_json(row) + "\n" for row in rows))
    return path


def tuned(capsys: pytest.CaptureFixture[str], *arguments: object, settings: int = 2) -> Ended:
    """A small sweep, in this process."""
    return cli(capsys, "tune", *arguments, "--settings", settings, "--workers", 1)


def test_tune_prints_lines_to_paste_and_writes_the_report(log: Path, tmp_path: Path) -> None:
    """A table, the recommendations, the report and the recording in our own format."""
    pytest.importorskip("vl_convert", reason="needs the tuning extra")
    report, saved = tmp_path / "report.html", tmp_path / "saved.jsonl"
    few = ("--settings", "6", "--workers", "2")
    done = run("tune", str(log), *few, "--html", "report.html", "--save", str(saved), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "report: report.html\n"  # and no trace of a progress bar
    assert "# fast: " in done.stdout
    assert "rest on what was not seen" in done.stdout
    assert all(
        re.fullmatch(r"IMAGE_GEN_\w+=[\w.]*", line)
        for line in done.stdout.splitlines()
        if line.startswith("IMAGE_GEN_")
    )
    assert report.read_text().startswith("<!doctype html>")
    assert saved.read_text() == log.read_text()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_tune_reads_standard_input(
    log: Path, pack: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe will do, packed or not; each provider's share is told."""
    piped = io.BufferedReader(io.BytesIO(pack(log.read_bytes())))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(piped))
    done = tuned(capsys, "-")
    assert done.code == 0, done.err
    assert "by google" in done.out
    assert "by openai" in done.out


def test_the_defaults_stand_beside_todays_settings(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they differ; else they are one and the same column."""
    assert "defaults" not in tuned(capsys, log).out
    monkeypatch.setenv("IMAGE_GEN_BREAKER_FAIL_MAX", "2")
    monkeypatch.setenv("IMAGE_GEN_FAILMAX", "2")
    done = tuned(capsys, log)
    assert re.search(r"today .* defaults .* fast", done.out)
    assert "IMAGE_GEN_FAILMAX is not a setting and is ignored; did you mean" in done.err


def test_with_the_breaker_off_today_what_is_tried_has_it_on(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and the lines to paste switch it on; what an operator forces open is left out."""
    monkeypatch.setenv("IMAGE_GEN_BREAKER_MODE", "off")
    monkeypatch.setenv("IMAGE_GEN_FORCE_OPEN", "google")
    done = tuned(capsys, log, settings=12)
    assert "IMAGE_GEN_BREAKER_MODE is off: today's settings are played so, all others" in done.out
    assert "IMAGE_GEN_FORCE_OPEN (google) is left out." in done.out
    assert "\nIMAGE_GEN_BREAKER_MODE=on\n" in done.out
    (by_google,) = re.findall(r"by google.*", done.out)
    assert "0.0%" not in by_google


def test_a_log_without_images_is_told_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At WARNING only what failed is written: whoever tunes by that must know."""
    path = tmp_path / "warnings.jsonl"
    failed = [
        Attempted(1e9 + at, str(at), "google:gemini-3-pro-image", 1.0, Reason.OVERLOADED)
        for at in range(0, 600, 60)
    ]
    path.write_text("".join(to_json(row) + "\n" for row in failed))
    for done in (tuned(capsys, path), cli(capsys, "cost", path)):
        assert "There is no image in it: was the logger imagegen at INFO?" in done.out


def test_cost_adds_up_what_was_spent(log: Path, tmp_path: Path) -> None:
    """Images, and dollars, by route, whose names are whole on a narrow terminal."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    images = [line for line in lines if "sent" in line and "reason" not in line]
    google = sum("google" in line["route"] for line in images)
    done = run("cost", str(log), cwd=tmp_path, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    assert f" {google} " in done.stdout
    assert f"{0.134 * google:.2f}" in done.stdout
    assert all(name in done.stdout for name in ("gemini-3-pro-image", "gpt-image-2.5-flare"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a recording"),
        (["missing.jsonl"], "missing.jsonl: No such file"),
        (["."], "directory"),
        (["--jaeger", "http://127.0.0.1:9"], "--service"),
        (["--jaeger", "http://127.0.0.1:9", "--service", "x"], "Connection refused"),
        (["x", "--jaeger", "y"], "name a recording"),
        *(
            (["--jaeger", "y", "--service", "x", "--lookback", text], "--lookback is a number")
            for text in ("soon", "²h", "0h", "99999999d", "1.2.3h")
        ),
        (["missing.jsonl", "--html", "nowhere/report.html"], "nowhere is not a directory"),
        (["missing.jsonl", "--html", "."], "is a directory"),
        (["missing.jsonl", "--save", "nowhere/calls.jsonl"], "nowhere is not a directory"),
    ],
)
def test_a_wrong_command_is_one_clear_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No traceback, the exit code of bad input, and what to do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = tuned(capsys, *arguments)
    assert done.code == 2
    assert says in done.complaint
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_not_begun_without_its_extra(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is missing is said before the sweep, not after it."""
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    monkeypatch.setattr(SWEEPING, "sweep", pytest.fail)
    done = tuned(capsys, log, "--html", tmp_path / "report.html")
    assert done.code == 2
    assert "resilient-imagen[tuning]" in done.complaint


@pytest.mark.parametrize("command", ["tune", "cost"])
def test_a_recording_is_never_saved_onto_itself(
    log: Path, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By whatever name; it stays as it was."""
    recording = tmp_path / "calls.jsonl"
    recording.write_bytes(log.read_bytes())
    (tmp_path / "other.jsonl").hardlink_to(recording)
    for name in ("calls.jsonl", "other.jsonl"):
        done = cli(capsys, command, recording, "--save", tmp_path / name)
        assert done.code == 2
        assert "is the recording itself" in done.complaint
    assert recording.read_bytes() == log.read_bytes()


def test_what_was_saved_before_stays_when_a_recording_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new file takes the old one's place when all is read; a pipe is written to as it is."""
    broken, saved, pipe = (tmp_path / name for name in ("broken", "saved", "pipe"))
    good = to_json(Attempted(1e9, "c", "google:m", 2.0)) + "\n"
    broken.write_text(good + '{"sent": 12, "rou')
    saved.write_text("as before")
    assert cli(capsys, "cost", broken, "--save", saved).code == 2
    assert saved.read_text() == "as before"
    assert cli(capsys, "cost", broken, "--skip-broken", "--save", saved).code == 0
    assert saved.read_text() == good
    pipe.symlink_to("/dev/null")
    assert cli(capsys, "cost", saved, "--save", pipe).code == 0
    assert pipe.is_symlink()
    assert {each.name for each in tmp_path.iterdir()} == {"broken", "saved", "pipe"}


def test_a_broken_recording_is_named_or_skipped(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line's number without --skip-broken, a count with it."""
    broken = tmp_path / "broken.jsonl"
    broken.write_text(log.read_text() + '{"sent": 12, "rou')
    done = tuned(capsys, broken)
    assert done.code == 2
    number = len(log.read_text().splitlines()) + 1
    assert f"line {number}: " in done.complaint
    done = tuned(capsys, broken, "--skip-broken")
    assert done.code == 0
    assert "broken lines skipped: 1" in done.out


# -- Ctrl-C ---------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_sweep_after_the_trial_it_meets(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, the shells' exit code, and the usual handler afterwards.

    It comes in the midst of a run, where an exception may get lost.
    """
    played: list[Any] = []
    try_out = SWEEPING.try_out

    def interrupted(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        played.append(try_out(*arguments, **options))
        return played[-1]

    monkeypatch.setattr(SWEEPING, "try_out", interrupted)
    usual = signal.getsignal(signal.SIGINT)
    done = tuned(capsys, log)
    assert (done.code, done.complaint, done.out) == (130, "stopped", "")
    assert len(played) == 1
    assert signal.getsignal(signal.SIGINT) is usual


def test_workers_leave_ctrl_c_to_their_parent(log: Path) -> None:
    """A terminal sends it to all of them: none of them dies of it."""
    from multiprocessing import active_children

    from resilient_imagen.tuning import load, sweep

    hit: set[int] = set()

    def send(_done: int, _total: int) -> None:
        for child in active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGINT)
                hit.add(child.pid)

    found = sweep(load(log), Settings(), count=6, workers=2, progress=send)
    assert len(found.trials) == 6
    assert len(hit) == 2
