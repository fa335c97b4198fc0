"""The journal of a batch: what a crash, a full disk or something in the way may cost."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_kit import asked, batch, journal, prepare, scenes, write

from resilient_imagen import ImageClient, Settings
from resilient_imagen.cli import files
from resilient_imagen.cli import journal as journals
from resilient_imagen.cli.batch import Batch
from resilient_imagen.cli.guard import CommandError
from resilient_imagen.cli.journal import Entry, Journal
from resilient_imagen.cli.order import Order
from resilient_imagen.cli.prompts import Row, read_prompts
from resilient_imagen.emulator import BackgroundEmulator
from resilient_imagen.testing import TINY_PNG, FakeProvider, run_virtual

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]
FULL = OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a directory land in the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def emulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> BackgroundEmulator:
    prepare(tmp_path, monkeypatch, imagen_emulator)
    return imagen_emulator


def rows(count: int = 1) -> list[Row]:
    return read_prompts(write(scenes(count)), Order("", "9:16", "2K"))


def part_of(row: Row, picture: bytes = TINY_PNG) -> Path:
    """Where a picture lies until its line is written."""
    return Path(f"out/.{row.id}.{row.asked}.{hashlib.sha256(picture).hexdigest()}.png.part")


def names() -> set[str]:
    return {path.name for path in Path("out").iterdir()}


# -- after a crash ----------------------------------------------------------------------------


def test_a_line_without_its_picture_is_completed() -> None:
    """The process died between the line and the picture's name: the picture gets its name."""
    (row,) = rows()
    with Journal(Path("out")) as kept:
        kept.done(row, ".png", TINY_PNG, {"provider": "google"})
    Path("out/s0.png").rename(part_of(row))
    with Journal(Path("out")) as kept:
        entry = kept.settled(row)
    assert entry is not None
    assert entry["provider"] == "google"
    assert Path("out/s0.png").read_bytes() == TINY_PNG
    assert len(journal()) == 1


def test_a_picture_without_its_line_is_not_paid_for_again(
    capsys: Capsys, emulator: BackgroundEmulator
) -> None:
    """The process died between the two: the picture's temporary name says what it is of."""
    first, _ = rows(2)
    Path("out").mkdir()
    part_of(first).write_bytes(TINY_PNG)
    summary = json.loads(batch(capsys).out)
    assert (summary["made"], summary["kept"], summary["left"]) == (1, 1, 0)
    assert summary["before"]["providers"] == {"unknown": 1}
    assert asked(emulator) == {"scene 1": 1}
    assert Path("out/s0.png").read_bytes() == TINY_PNG
    assert json.loads(batch(capsys).out)["kept"] == 2
    assert names() == {"results.jsonl", "s0.png", "s1.jpg"}


def test_a_picture_of_something_else_is_not_taken() -> None:
    """The row asks for another one by now; it may come back."""
    (row,) = rows()
    Path("out").mkdir()
    part_of(row).write_bytes(TINY_PNG)
    (changed,) = read_prompts(write(scenes(1)), Order("", "1:1", "2K"))
    with Journal(Path("out")) as kept:
        assert kept.settled(changed) is None
        assert kept.settled(row) is not None


def test_half_a_picture_is_never_taken_for_one() -> None:
    """The process died while it wrote: what it left is neither named nor believed nor kept."""
    (row,) = rows()
    with Journal(Path("out")) as kept:
        kept.done(row, ".png", TINY_PNG, {})
    Path("out/s0.png").unlink()
    part_of(row).write_bytes(TINY_PNG[:30])
    with Journal(Path("out")) as kept:
        assert kept.settled(row) is None
    assert names() == {"results.jsonl"}


DAMAGE = ['{"id": "s0", "sta', "[]", '{"id": 7}', '{"id": "s0"}', "\x00", "[" * 100_000]


@pytest.mark.parametrize("damage", DAMAGE, ids=[damage[:20] for damage in DAMAGE])
def test_a_damaged_line_costs_only_itself(damage: str, capsys: Capsys) -> None:
    """The process died in the middle of a line: it is named, and the next one stands on its own."""
    first, second = rows(2)
    with Journal(Path("out")) as kept:
        kept.done(first, ".png", TINY_PNG, {})
    with Path("out/results.jsonl").open("a") as file:
        file.write(damage)
    with Journal(Path("out")) as kept:
        assert kept.settled(first) is not None
        kept.done(second, ".png", TINY_PNG, {})
    assert "line 2 is damaged" in capsys.readouterr().err
    with Journal(Path("out")) as kept:
        assert kept.settled(first) is not None
        assert kept.settled(second) is not None


def test_one_run_at_a_time() -> None:
    """Two at once in one directory would pay for everything twice."""
    with (
        Journal(Path("out")),
        pytest.raises(CommandError, match="another run is at work here"),
        Journal(Path("out")),
    ):
        pass
    with Journal(Path("out")):
        pass


@pytest.mark.parametrize("other", [b"", b"another picture"])
def test_another_picture_under_its_name_does_not_count(other: bytes, capsys: Capsys) -> None:
    """Nor does an empty file; that it is made again is said."""
    (row,) = rows()
    with Journal(Path("out")) as kept:
        kept.done(row, ".png", TINY_PNG, {})
    Path("out/s0.png").write_bytes(other)
    with Journal(Path("out")) as kept:
        assert kept.settled(row) is None
    assert "out/s0.png is not the picture that was kept" in capsys.readouterr().err


# -- where something cannot be written --------------------------------------------------------


def test_something_in_the_way_costs_only_its_row(
    capsys: Capsys, emulator: BackgroundEmulator
) -> None:
    """A directory under the picture's name: nothing is sent for it, all others are made."""
    write(scenes(3))
    Path("out/s1.jpg").mkdir(parents=True)
    ended = batch(capsys)
    assert ended.code == 1
    summary = json.loads(ended.out)
    assert (summary["made"], summary["left"]) == (2, 0)
    (failed,) = summary["failed"]
    assert (failed["id"], failed["line"], failed["reason"]) == ("s1", 2, "not_saved")
    assert failed["error"] == "out/s1.jpg is in the way: it is no file"
    assert asked(emulator) == {"scene 0": 1, "scene 2": 1}
    Path("out/s1.jpg").rmdir()
    assert json.loads(batch(capsys).out)["made"] == 1


def test_something_that_came_in_the_way_is_not_paid_for_twice() -> None:
    """The picture is kept beside it, and put in place as soon as there is room."""
    (row,) = rows()
    with Journal(Path("out")) as kept:
        Path("out/s0.png").mkdir()
        entry = kept.done(row, ".png", TINY_PNG, {})
        assert entry["reason"] == "not_saved"
        assert str(part_of(row)) in entry["error"]
    with Journal(Path("out")) as kept:
        assert (kept.settled(row) or {})["reason"] == "not_saved"
    Path("out/s0.png").rmdir()
    with Journal(Path("out")) as kept:
        assert (kept.settled(row) or {})["status"] == "done"
    assert Path("out/s0.png").read_bytes() == TINY_PNG


def test_a_folder_that_takes_nothing_costs_nothing(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, emulator: BackgroundEmulator
) -> None:
    """One line that names it, and no request."""

    def full(path: Path, data: bytes) -> None:
        raise FULL

    monkeypatch.setattr(files, "write_synced", full)
    write(scenes(2))
    ended = batch(capsys)
    assert ended.code == 2
    assert ended.complaint == "out/results.jsonl cannot be written: No space left on device"
    assert emulator.google.requests == ()


def fill_up(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Make the disk of pictures full after so many of them."""
    real, count = files.write_synced, 0

    def filling(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise FULL
        real(path, data)

    monkeypatch.setattr(journals, "write_synced", filling)


def make(every: list[Row], google: FakeProvider, tell: Callable[[Row, Entry], None]) -> Batch:
    """Run a batch of three at a time on virtual time; one request after the other is sent."""

    async def run() -> Batch:
        settings = Settings(routes="google:gemini-3-pro-image", google_api_key="made-up", ipm=6000)
        async with ImageClient(settings, providers=[google]) as client:
            with Journal(Path("out")) as kept:
                work = Batch(every, kept, tell)
                await work.run(client, 3)
        return work

    return run_virtual(run())


def test_a_disk_that_fills_up_stops_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is begun; what is under way comes in, and is kept if there is room again."""
    every = rows(20)
    fill_up(monkeypatch, after=2)
    google = FakeProvider("google")
    work = make(every, google, lambda *_: None)
    assert len(google.sent) == 5
    assert work.stopped == "out/s2.png: No space left on device"
    assert {entry["id"] for entry in journal()} == {"s0", "s1"}
    unsaved = [entry for entry in work.entries if entry["status"] != "done"]
    assert {entry["id"] for entry in unsaved} == {"s2", "s3", "s4"}
    assert {entry["reason"] for entry in unsaved} == {"not_saved"}


def test_a_line_that_cannot_be_written_leaves_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the line is taken back, and the next run has the picture for nothing."""
    (row,) = rows()
    with Journal(Path("out")) as kept:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _full)
            patch.setattr(journals, "write_synced", lambda path, data: path.write_bytes(data))
            with pytest.raises(OSError, match=r"No space left on device: 'out/s0\.png'"):
                kept.done(row, ".png", TINY_PNG, {})
        assert Path("out/results.jsonl").read_bytes() == b""
    with Journal(Path("out")) as kept:
        assert kept.settled(row) is not None
    assert Path("out/s0.png").read_bytes() == TINY_PNG


def _full(file: int) -> None:
    raise FULL


def test_a_bug_drops_nothing_that_is_under_way() -> None:
    """It ends the run, after what others had sent has come in."""

    def stumble(row: Row, entry: Entry) -> None:
        if row.id == "s0":
            raise ZeroDivisionError

    google = FakeProvider("google")
    with pytest.raises(ZeroDivisionError):
        make(rows(9), google, stumble)
    assert len(google.sent) == 3
    assert {entry["id"] for entry in journal()} == {"s0", "s1", "s2"}
