"""Journal of ``generate --from``: crashes, damaged lines and files that cannot be written."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batch_kit import asked, batch, journal, prepare, run_rows, scenes, write
from images_samples import delivered

from resilient_imagen import Reason
from resilient_imagen.cli import batch_journal, files
from resilient_imagen.cli.batch_journal import Entry, Journal, open_journal
from resilient_imagen.cli.batch_prompts import PromptRow, read_prompts
from resilient_imagen.cli.image_spec import ImageSpec
from resilient_imagen.emulator import BackgroundEmulator
from resilient_imagen.errors import provider_failure
from resilient_imagen.testing import TINY_PNG, FakeProvider

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]
FULL = OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the test's own directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def emulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> BackgroundEmulator:
    prepare(tmp_path, monkeypatch, imagen_emulator)
    return imagen_emulator


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no image be saved."""

    def fail(path: Path, _: bytes) -> None:
        raise OSError(FULL.errno, FULL.strerror, str(path))

    monkeypatch.setattr(batch_journal, "write_whole", fail)


def rows(count: int = 1) -> list[PromptRow]:
    return read_prompts(write(scenes(count)), ImageSpec("", "9:16", "2K"))


# -- after a crash ----------------------------------------------------------------------------


class Crash(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("step", ["image", "name", "line", "line on the disk"])
def test_a_row_is_finished_in_full_or_not_at_all(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies at any step leaves a row that is done or that the next run makes."""
    (row,) = rows()

    def die(*_: object, **__: object) -> None:
        raise Crash

    with open_journal(Path("out")) as kept, monkeypatch.context() as patch:
        if step == "line":
            patch.setattr(json, "dumps", die)
        elif step == "name":
            patch.setattr(Path, "replace", die)
        else:
            usual, calls = os.fsync, iter([step == "image", True])
            patch.setattr(os, "fsync", lambda file: die() if next(calls) else usual(file))
        with pytest.raises(Crash):
            kept.record(row, delivered(TINY_PNG))
    with open_journal(Path("out")) as kept:
        if kept.settled(row) is None:
            kept.record(row, delivered(TINY_PNG))
    with open_journal(Path("out")) as kept:
        assert kept.settled(row) is not None
    assert Path("out/s0.png").read_bytes() == TINY_PNG


def test_temporary_files_of_killed_runs_are_removed() -> None:
    """Old ones are removed; new ones, which another command may be writing, and others are not."""
    Path("out").mkdir()
    old, new, other = (
        Path("out", name) for name in (f".{'0' * 16}.part", f".{'1' * 16}.part", ".a.part")
    )
    for path in (old, new, other):
        path.write_bytes(b"half an image")
    for path in (old, other):
        os.utime(path, (0, 0))
    with open_journal(Path("out")):
        assert not old.exists()
        assert new.exists()
        assert other.exists()


DAMAGE = ['{"id": "s0", "sta', "[]", '{"id": []}', '{"i": "s0"}', "\x00", "[" * 100_000]


@pytest.mark.parametrize("damage", DAMAGE, ids=[damage[:20] for damage in DAMAGE])
def test_a_damaged_line_affects_only_itself(damage: str, capsys: Capsys) -> None:
    """A line that a crash cut off is reported, and the next line starts a new one."""
    first, second = rows(2)
    with open_journal(Path("out")) as kept:
        kept.record(first, delivered(TINY_PNG))
    with Path("out/results.jsonl").open("a") as file:
        file.write(damage)
    with open_journal(Path("out")) as kept:
        assert kept.settled(first) is not None
        kept.record(second, delivered(TINY_PNG))
    assert "ignoring the damaged line 2" in capsys.readouterr().err
    with open_journal(Path("out")) as kept:
        assert kept.settled(first) is not None
        assert kept.settled(second) is not None


def test_the_last_line_of_a_row_counts() -> None:
    """An earlier failure, and lines of other requests and rows, change nothing."""
    first, second = rows(2)
    with open_journal(Path("out")) as kept:
        kept.record(first, delivered(TINY_PNG))
    done = journal()[0]
    lines = [{**done, "status": "failed", "reason": "timeout"}, done, {**done, "id": "s9"}]
    Path("out/results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with open_journal(Path("out")) as kept:
        assert kept.settled(first) is not None
        assert kept.settled(second) is None


def test_a_refused_prompt_does_not_hide_the_image_of_another_one() -> None:
    """The directory still has the image of the first prompt: it is kept if that is back."""
    usual = ImageSpec("", "9:16", "2K")
    (first,) = read_prompts(write([{"id": "a", "prompt": "one"}]), usual)
    (second,) = read_prompts(write([{"id": "a", "prompt": "two"}]), usual)
    blocked = provider_failure(Reason.CONTENT_BLOCKED, provider="google", model="m")
    with open_journal(Path("out")) as kept:
        kept.record(first, delivered(TINY_PNG))
        kept.record(second, blocked)
    with open_journal(Path("out")) as kept:
        assert (kept.settled(first), kept.settled(second)) == ("kept", "failed")
        kept.record(second, delivered(TINY_PNG))
    with open_journal(Path("out")) as kept:
        assert (kept.settled(first), kept.settled(second)) == (None, "kept")


# -- files that cannot be written -------------------------------------------------------------


def test_a_directory_that_cannot_be_written_costs_nothing(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, emulator: BackgroundEmulator
) -> None:
    """A full disk is found before anything is sent."""
    monkeypatch.setattr(os, "fsync", _full)
    write(scenes(2))
    ended = batch(capsys)
    assert ended.code == 2
    assert ended.complaint == "out/results.jsonl cannot be written: No space left on device"
    assert emulator.google.requests == ()


def test_a_file_in_place_of_the_directory_is_refused(
    capsys: Capsys, emulator: BackgroundEmulator
) -> None:
    """The command reports it as bad input and sends nothing."""
    write(scenes(1))
    Path("out").write_text("a file")
    ended = batch(capsys)
    assert (ended.code, ended.complaint) == (
        2, "-o out: File exists"
    )  # fmt: skip
    assert emulator.google.requests == ()


def test_a_link_in_place_of_the_journal_is_not_followed(
    tmp_path: Path, capsys: Capsys, emulator: BackgroundEmulator
) -> None:
    """A file outside the directory is never appended to."""
    write(scenes(1))
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    Path("out").mkdir()
    Path("out/results.jsonl").symlink_to(victim)
    assert batch(capsys).code == 2
    assert victim.read_bytes() == b"precious"
    assert emulator.google.requests == ()


def test_an_image_that_cannot_be_saved_stops_the_run(
    capsys: Capsys, emulator: BackgroundEmulator
) -> None:
    """The summary has the cause, and the next run makes the row."""
    write(scenes(1))
    Path("out/s0.jpg").mkdir(parents=True)
    ended = batch(capsys)
    assert ended.code == 1
    summary = json.loads(ended.out)
    assert (summary["left"], summary["stopped"]) == (1, "out/s0.jpg: Is a directory")
    Path("out/s0.jpg").rmdir()
    assert json.loads(batch(capsys).out)["made"] == 1
    assert asked(emulator) == {"scene 0": 2}


def test_a_disk_that_fills_up_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more requests are sent; images of those in flight are saved if there is room again."""
    saved, usual = 0, files.write_whole

    def filling(path: Path, data: bytes) -> None:
        nonlocal saved
        saved += 1
        if saved > 2:
            raise OSError(FULL.errno, FULL.strerror, str(path))
        usual(path, data)

    monkeypatch.setattr(batch_journal, "write_whole", filling)
    google = FakeProvider("google")
    run = run_rows(rows(20), google)
    assert len(google.sent) == 6
    assert run.stopped == "out/s2.png: No space left on device"
    assert {entry["id"] for entry in journal()} == {"s0", "s1"}
    assert len(run.entries) == 2


@pytest.mark.usefixtures("full_disk")
def test_a_row_that_stops_the_run_is_no_call_under_way(capsys: Capsys) -> None:
    """A row of several images that cannot be saved allows no further request of another row."""

    google = FakeProvider("google", latency=1.0)
    openai = FakeProvider("openai")
    google.fail(Reason.OVERLOADED, latency=5.0, status=503, times=1)
    other, several = rows(2)
    several = replace(several, spec=replace(several.spec, options={"n": 2}))
    run = run_rows([other, several], google, openai, max_retries=3)
    assert (run.stopped or "").endswith("No space left on device")
    assert len(google.sent) == 3, "one of the first row, two images of the second"
    assert openai.sent == []
    assert "finishing sent calls: 1;" in capsys.readouterr().err


@pytest.mark.usefixtures("full_disk")
def test_each_image_that_cannot_be_saved_is_reported(capsys: Capsys) -> None:
    """The first one stops the run; images that arrive later were paid for, too."""

    run_rows(rows(3), FakeProvider("google"))
    err = capsys.readouterr().err
    assert err.count("No space left on device") == 3
    assert err.count("not recorded") == 2


def test_a_bug_drops_nothing_that_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """An internal error ends the run when requests in flight have ended."""
    usual = Journal.record

    def failing(kept: Journal, row: PromptRow, outcome: Any) -> Entry:
        entry = usual(kept, row, outcome)
        if row.id == "s0":
            raise ZeroDivisionError
        return entry

    monkeypatch.setattr(Journal, "record", failing)
    google = FakeProvider("google")
    run = run_rows(rows(9), google)
    assert (run.stopped or "").startswith("internal error, please report it: ZeroDivisionError at ")
    assert len(google.sent) == 4
    assert {entry["id"] for entry in journal()} == {"s0", "s1", "s2", "s3"}


def _full(file: int) -> None:
    raise FULL
