"""The commands `tune` and `cost`: what they print, what they refuse, and how they are stopped."""

from __future__ import annotations

import gzip
import html
import io
import json
import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from select import select
from typing import Any

import pytest
from cli_kit import Ended, cli, run
from tuning_kit import bad, world

from resilient_imagen import Reason, Settings
from resilient_imagen.tuning import Recorder
from resilient_imagen.tuning.rows import Attempted, Row, to_json
from resilient_imagen.tuning.simulation import play

pytestmark = pytest.mark.ci  # sweeps in processes of their own

SWEEPING = import_module("resilient_imagen.tuning.sweep")  # whose name the package gives away
TRIALS = import_module("resilient_imagen.tuning.trials")


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
    report, saved = tmp_path / "report.html", tmp_path / "saved.jsonl"
    few = ("--settings", "6", "--workers", "2")
    done = run("tune", str(log), *few, "--html", "report.html", "--save", str(saved), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "report: report.html\n"  # and no trace of a progress bar
    assert re.search(r"recorded .* replayed", done.stdout)
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
    """Standard input may be packed; the shares of the routes are shown."""
    piped = io.BufferedReader(io.BytesIO(pack(log.read_bytes())))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(piped))
    done = tuned(capsys, "-")
    assert done.code == 0, done.err
    assert "by the first route" in done.out
    assert "Ranges in parentheses are 90 % intervals." in done.out
    assert "by other routes" in done.out


def without_settings(log: Path, target: Path) -> Path:
    """Write the recording without the lines about its settings."""
    lines = log.read_text().splitlines(keepends=True)
    target.write_text("".join(line for line in lines if "configured" not in line))
    return target


def test_recorded_settings_are_used_instead_of_the_shells(
    log: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The environment counts only if the recording has no settings; unknown variables are named."""
    monkeypatch.setenv("IMAGE_GEN_BREAKER_FAIL_MAX", "8")
    monkeypatch.setenv("IMAGE_GEN_BREAKER_RESET_TIMEOUT", "5")
    monkeypatch.setenv("IMAGE_GEN_FAILMAX", "2")
    results = tmp_path / "results.json"
    assert tuned(capsys, log, "--json", results).code == 0
    assert json.loads(results.read_text())["settings"]["IMAGE_GEN_BREAKER_FAIL_MAX"] == "3"
    plain = without_settings(log, tmp_path / "plain.jsonl")
    done = tuned(capsys, plain, "--json", results)
    assert "IMAGE_GEN_FAILMAX is not a setting and is ignored; did you mean" in done.err
    found = json.loads(results.read_text())
    assert found["settings"]["IMAGE_GEN_BREAKER_FAIL_MAX"] == "8"
    assert found["matches"] is False


def test_a_refusal_names_settings_and_what_to_do(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong settings are refused; the right ones, by --set or --env-file, are not."""
    plain = without_settings(log, tmp_path / "plain.jsonl")
    wrong = ("--set", "IMAGE_GEN_BREAKER_RESET_TIMEOUT=5", "--set", "IMAGE_GEN_BREAKER_FAIL_MAX=8")
    done = tuned(capsys, plain, *wrong)
    shown = " ".join(done.out.split())
    assert "fast:" not in shown
    assert shown.startswith("No advice yet: a replay of your settings does not give what was")
    assert "--set NAME=VALUE or --env-file FILE" in shown
    assert re.search(r"wasted requests: recorded \d+, replayed \d+; a difference of \d+ is", shown)
    assert re.search(r"Try --set IMAGE_GEN_BREAKER_(FAIL_MAX|RESET_TIMEOUT)=\d+", shown)
    assert "IMAGE_GEN_SHADOW" not in shown
    file = tmp_path / "settings.env"
    file.write_text("OPENAI_API_KEY=sk-secret\nIMAGE_GEN_IPM=10 # the default\nDEBUG=1\n")
    done = tuned(capsys, plain, "--env-file", file)
    assert done.code == 0
    assert "a replay of your settings does not give" not in " ".join(done.out.split())
    assert "secret" not in done.out


def test_the_answer_is_the_same_sentence_everywhere(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The terminal, the results for programs and the page begin with one sentence."""
    results, report = tmp_path / "results.json", tmp_path / "report.html"
    done = tuned(capsys, log, "--json", results, "--html", report)
    (heading,) = re.findall("<h1>(.*?)</h1>", report.read_text())
    verdict = json.loads(results.read_text())["verdict"]
    assert html.unescape(heading) == verdict
    assert " ".join(done.out.split()).startswith(verdict)


def test_the_results_are_written_for_programs(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The columns and each objective have the documented measures, each with its interval."""
    results = tmp_path / "results.json"
    assert tuned(capsys, log, "--json", results).code == 0
    found = json.loads(results.read_text())
    assert found["format"] == 1
    assert set(found["objectives"]) == {"fast", "cheap", "stay"}
    for each in found["objectives"].values():
        assert isinstance(each["recommended"], bool)
        assert isinstance(each["settings"], dict)
    measures = {
        "mean_s", "p50_s", "p95_s", "primary_share", "fallback_share", "wasted_requests",
        "cost_usd_per_image", "lost_calls",
    }  # fmt: skip
    for column in (found["recorded"], found["replayed"], *found["objectives"].values()):
        assert measures <= column.keys()
        for name in measures:
            assert column[name].keys() == {"value", "low", "high"}
            assert column[name]["low"] <= column[name]["value"] <= column[name]["high"]
    recorded, replayed = found["recorded"], found["replayed"]
    assert recorded["mean_s"]["value"] == pytest.approx(replayed["mean_s"]["value"], rel=0.1)


def test_what_if_compares_one_setting(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer comes first; the table has what was recorded, its replay and the change."""
    results = tmp_path / "results.json"
    done = cli(
        capsys, "tune", "what-if", log, "--set", "IMAGE_GEN_BREAKER_FAIL_MAX=9", "--json", results
    )
    assert done.code == 0, done.err
    assert "changed: IMAGE_GEN_BREAKER_FAIL_MAX=9" in done.out
    assert re.search("recorded .* replayed .* changed", done.out)
    assert "Ranges in parentheses are 90 % intervals." in done.out
    found = json.loads(results.read_text())
    assert " ".join(done.out.split()).startswith(found["verdict"])
    assert found["what_if"]["settings"] == {"IMAGE_GEN_BREAKER_FAIL_MAX": "9"}
    assert (
        found["what_if"]["wasted_requests"]["value"] > found["replayed"]["wasted_requests"]["value"]
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["what-if", "LOG"], "what-if needs --set NAME=VALUE"),
        (["what-if", "LOG", "--set", "FAIL_MAX"], "--set FAIL_MAX: it is NAME=VALUE"),
        (
            ["what-if", "LOG", "--set", "IMAGE_GEN_BREAKER_FAILMAX=3"],
            "did you mean IMAGE_GEN_BREAKER_FAIL_MAX",
        ),
        (["LOG", "--set", "IMAGE_GEN_BREAKER_FAIL_MAX=0"], "must be at least 1"),
        (["LOG", "--env-file", "missing.env"], "there is no such file"),
        (["LOG", "LOG"], "name one recording"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(
    arguments: list[str], says: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The variable and what is allowed are named."""
    done = tuned(capsys, *(log if each == "LOG" else each for each in arguments))
    assert done.code == 2
    assert says in done.complaint


def test_a_breaker_that_was_off_is_replayed_so(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text says which settings all other trials ignore."""
    plain = without_settings(log, tmp_path / "plain.jsonl")
    given = ("--set", "IMAGE_GEN_BREAKER_MODE=off", "--set", "IMAGE_GEN_FORCE_OPEN=google")
    done = tuned(capsys, plain, *given)
    assert "IMAGE_GEN_BREAKER_MODE is off: the recording is replayed so, all others" in done.out
    assert "IMAGE_GEN_FORCE_OPEN (google) is left out." in done.out


def test_a_log_without_images_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands report a recording without images, as logging at WARNING writes it."""
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


def test_ctrl_c_ends_a_sweep_and_keeps_what_was_tried(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results are about the settings that were tried, and the exit code is the shells'.

    It comes in the midst of a replay, where an exception may get lost.
    """
    played: list[Any] = []
    try_out = TRIALS.try_out

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if len(played) == 12:
            signal.raise_signal(signal.SIGINT)
        played.append(try_out(*arguments, **options))
        return played[-1]

    monkeypatch.setattr(TRIALS, "try_out", interrupted)
    usual = signal.getsignal(signal.SIGINT)
    results, report = tmp_path / "results.json", tmp_path / "report.html"
    done = tuned(capsys, log, "--json", results, "--html", report, settings=100)
    assert done.code == 130
    assert "What was recorded" in report.read_text()
    assert re.search(r"stopped after \d+ of 100 settings", done.err)
    assert re.search(r"recorded .* replayed", done.out)
    found = json.loads(results.read_text())
    assert found["interrupted"] is True
    assert re.match(r"Stopped after \d+ of 100 settings[.;] ", found["verdict"])
    assert " ".join(done.out.split()).startswith(found["verdict"])
    assert 12 < len(played) < 40
    assert signal.getsignal(signal.SIGINT) is usual


KILLED = """
import sys, time
from multiprocessing import active_children
from resilient_imagen import Settings
from resilient_imagen.tuning import load
from resilient_imagen.tuning.trials import trying
from resilient_imagen.tuning.tunable_settings import TunableSettings

if __name__ == "__main__":
    today = Settings()
    with trying(load(sys.argv[1]), today, 2) as run:
        list(run([TunableSettings.of(today)] * 4, 0))
        print(*(child.pid for child in active_children()), flush=True)
        time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes of others")
def test_workers_end_when_their_parent_is_killed(log: Path) -> None:
    """A parent that is killed cannot end its workers, so they watch it."""
    command = [sys.executable, "-c", KILLED, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [os.pidfd_open(int(each)) for each in parent.stdout.readline().split()]
        parent.kill()
    assert len(workers) == 2
    for worker in workers:
        select([worker], [], [])  # until it has ended
        os.close(worker)


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
    assert len(found.trials) >= 6
    assert len(hit) == 2
