"""The journal of a batch: what a crash, a full disk or something in the way may cost."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import pytest
from batch_kit import asked, batch, journal, prepare, scenes, write
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen import ImageClient, Settings
from resilient_imagen.cli import journal as journals
from resilient_imagen.cli import output_files
from resilient_imagen.cli.batch import Batch
from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.cli.image_spec import ImageSpec
from resilient_imagen.cli.journal import Entry, Journal
from resilient_imagen.cli.prompts import PromptRow, read_prompts
from resilient_imagen.cli.summary import Spent, show_summary, summarize
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


def rows(count: int = 1) -> list[PromptRow]:
    return read_prompts(write(scenes(count)), ImageSpec("", "9:16", "2K"))


def part_of(row: PromptRow, picture: bytes = TINY_PNG) -> Path:
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
    (changed,) = read_prompts(write(scenes(1)), ImageSpec("", "1:1", "2K"))
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

    monkeypatch.setattr(os, "fsync", _full)
    write(scenes(2))
    ended = batch(capsys)
    assert ended.code == 2
    assert ended.complaint == "out/results.jsonl cannot be written: No space left on device"
    assert emulator.google.requests == ()


def test_a_file_where_the_folder_should_be_is_named(
    capsys: Capsys, emulator: BackgroundEmulator
) -> None:
    """As bad input, before anything is sent."""
    write(scenes(1))
    Path("out").write_text("a file")
    ended = batch(capsys)
    assert (ended.code, ended.complaint) == (
        2, "out is no directory; --from needs one for the images"
    )  # fmt: skip
    assert emulator.google.requests == ()


def fill_up(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Make the disk of pictures full after so many of them."""
    real, count = output_files.replacing, 0

    @contextmanager
    def filling(path: Path, suffix: str) -> Iterator[IO[bytes]]:
        nonlocal count
        count += 1
        with real(path, suffix) as file:
            if count > after:
                raise FULL
            yield file

    monkeypatch.setattr(journals, "replacing", filling)


def make(
    every: list[PromptRow], google: FakeProvider, tell: Callable[[PromptRow, Entry], None]
) -> Batch:
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
            patch.setattr(os, "fsync", _full_after(1))  # the picture's own comes first
            with pytest.raises(OSError, match=r"No space left on device: 'out/s0\.png'"):
                kept.done(row, ".png", TINY_PNG, {})
        assert Path("out/results.jsonl").read_bytes() == b""
    with Journal(Path("out")) as kept:
        assert kept.settled(row) is not None
    assert Path("out/s0.png").read_bytes() == TINY_PNG


def _full(file: int) -> None:
    raise FULL


def _full_after(times: int) -> Callable[[int], None]:
    real, left = os.fsync, times

    def sync(file: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise FULL
        real(file)

    return sync


def test_a_bug_drops_nothing_that_is_under_way() -> None:
    """It ends the run, after what others had sent has come in."""

    def stumble(row: PromptRow, entry: Entry) -> None:
        if row.id == "s0":
            raise ZeroDivisionError

    google = FakeProvider("google")
    with pytest.raises(ZeroDivisionError):
        make(rows(9), google, stumble)
    assert len(google.sent) == 3
    assert {entry["id"] for entry in journal()} == {"s0", "s1", "s2"}


# -- a folder from somebody else --------------------------------------------------------------


def strange_journal(*entries: Entry | str) -> None:
    """A journal that another program wrote."""
    Path("out").mkdir(exist_ok=True)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    Path("out/results.jsonl").write_text("".join(line + "\n" for line in lines))


def claim(row: PromptRow, picture: bytes = TINY_PNG, **more: Any) -> Entry:
    """A line that says that the row's picture is done."""
    digest = hashlib.sha256(picture).hexdigest()
    return {
        "id": row.id, "line": 1, "asked": row.asked, "status": "done", "file": f"{row.id}.png",
        "sha256": digest, "provider": "google", "usage": {"cost_usd": 0.1}, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    "place",
    ["{outside}", "../victim.png", "./s0.png", "sub/../s0.png", "s1.png", "results.jsonl", "",
     "s0", "s0.exe", "s0.png\x00", "S0.png", ".s0.png", "s0.png/"],
)  # fmt: skip
def test_a_journal_names_no_file_but_the_rows_own(
    place: str, tmp_path: Path, capsys: Capsys
) -> None:
    """Another path is neither read nor written, even if a picture for it lies ready."""
    first, _ = rows(2)
    victim = tmp_path / "victim.png"
    victim.write_bytes(b"precious")
    strange_journal(claim(first, file=place.format(outside=victim)))
    Path("out/s1.png").write_bytes(b"another row's")
    part_of(first).write_bytes(TINY_PNG)
    with Journal(Path("out")) as kept:
        entry = kept.settled(first)
    assert victim.read_bytes() == b"precious"
    assert Path("out/s1.png").read_bytes() == b"another row's"
    assert entry is not None
    assert entry["file"] == "s0.png"
    assert Path("out/s0.png").read_bytes() == TINY_PNG
    assert "line 1 is damaged and left out" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["picture", "part", "journal", "unfinished"])
def test_links_in_the_folder_are_not_followed(
    what: str, tmp_path: Path, capsys: Capsys, emulator: BackgroundEmulator
) -> None:
    """A file outside, to which they point, is neither read as a picture nor written."""
    (row,) = rows()
    victim = tmp_path / "victim.png"
    victim.write_bytes(TINY_PNG)
    strange_journal(claim(row))
    link = {
        "picture": Path("out/s0.png"), "part": part_of(row), "journal": Path("out/results.jsonl"),
        "unfinished": Path("out/.0123456789abcdef.picture.part"),
    }[what]  # fmt: skip
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    ended = batch(capsys)
    assert victim.read_bytes() == TINY_PNG
    if what == "journal":
        assert ended.code == 2
        assert ended.complaint == "out/results.jsonl cannot be written: is a symbolic link"
        assert emulator.google.requests == ()
    else:
        assert json.loads(ended.out)["made"] == 1
        assert not Path("out/s0.jpg").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_in_the_folder_holds_nothing_up(capsys: Capsys) -> None:
    """Opening one to read waits for a writer: it is none of our files."""
    (row,) = rows()
    strange_journal(claim(row))
    os.mkfifo(part_of(row))
    with Journal(Path("out")) as kept:
        assert kept.settled(row) is None
    Path("out/results.jsonl").unlink()
    os.mkfifo("out/results.jsonl")
    with pytest.raises(CommandError, match="is no ordinary file"), Journal(Path("out")):
        pass
    capsys.readouterr()


HUGE = "9" * 400
STRANGE: dict[str, Any] = {
    "a digest of another type": {"sha256": 7},
    "a digest that is none": {"sha256": "../../etc/passwd"},
    "a file of another type": {"file": ["s0.png"]},
    "a status of another type": {"status": {"done": 1}},
    "an unknown status": {"status": "excellent"},
    "a failure without words": {"status": "failed", "reason": "content_blocked"},
    "a failure with strange words": {
        "status": "failed", "reason": "content_blocked", "error": {"a": 1},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_a_line_of_wrong_types_is_left_out(name: str, capsys: Capsys) -> None:
    """It is named, and its row is made."""
    (row,) = rows()
    strange_journal({**claim(row), **STRANGE[name]})
    Path("out/s0.png").write_bytes(TINY_PNG)
    with Journal(Path("out")) as kept:
        assert kept.settled(row) is None
    assert "line 1 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "usage",
    ["7", "[1]", '{"cost_usd": "much"}', '{"cost_usd": NaN}', '{"cost_usd": Infinity}',
     '{"cost_usd": -3}', '{"cost_usd": true}', f'{{"cost_usd": {HUGE}}}', '{"cost_usd": []}'],
)  # fmt: skip
def test_a_price_that_cannot_be_counts_nothing(
    usage: str, capsys: Capsys, emulator: BackgroundEmulator
) -> None:
    """A picture is kept all the same, and the summary stays a number."""
    (row,) = rows()
    claimed = json.dumps(claim(row, provider=["google"])).replace('{"cost_usd": 0.1}', usage)
    strange_journal(claimed)
    Path("out/s0.png").write_bytes(TINY_PNG)
    ended = batch(capsys)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["before"] == {"providers": {"unknown": 1}, "cost_usd": 0}


def test_the_last_of_several_lines_of_a_row_counts(capsys: Capsys) -> None:
    """As in a journal of several runs; lines of other rows and of nobody change nothing."""
    first, second = rows(2)
    Path("out").mkdir()
    Path("out/s0.png").write_bytes(TINY_PNG)
    strange_journal(
        claim(first, picture=b"another one"), claim(second), claim(first), claim(first, id="s9")
    )
    with Journal(Path("out")) as kept:
        assert (kept.settled(first) or {})["status"] == "done"
        assert kept.settled(second) is None


def test_a_huge_line_costs_no_memory(capsys: Capsys) -> None:
    """It is skipped piece by piece; the lines around it count."""
    first, second = rows(2)
    with Journal(Path("out")) as kept:
        kept.done(first, ".png", TINY_PNG, {})
    with Path("out/results.jsonl").open("a") as file:
        file.write('{"id": "' + "x" * 50_000_000 + '"}\n')
    with Journal(Path("out")) as kept:
        kept.done(second, ".png", TINY_PNG, {})
    capsys.readouterr()
    tracemalloc.start()
    try:
        with Journal(Path("out")) as kept:
            assert kept.settled(first) is not None
            assert kept.settled(second) is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000
    assert "line 2 is damaged and left out" in capsys.readouterr().err


def test_many_damaged_lines_are_not_all_named(capsys: Capsys) -> None:
    """The first five, and how many more."""
    strange_journal(*["nothing"] * 40)
    with Journal(Path("out")):
        pass
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 6
    assert told[-1].endswith("35 more lines are damaged and left out")


def test_what_a_killed_run_left_unfinished_is_removed() -> None:
    """A file of the user's with nearly such a name is not."""
    (row,) = rows()
    Path("out").mkdir()
    for name in (".0123456789abcdef.picture.part", ".mine.part", ".0123456789abcdef.part"):
        Path("out", name).write_bytes(b"half")
    with Journal(Path("out")) as kept:
        assert kept.settled(row) is None
    assert names() == {"results.jsonl", ".mine.part", ".0123456789abcdef.part"}


_STRANGE_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8)
    | st.sampled_from(["done", "failed", "s0", "s0.png", "content_blocked", "0" * 64]),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.sampled_from(["cost_usd", "id", "x"]), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip
_FIELDS = ["id", "asked", "status", "file", "sha256", "provider", "usage", "reason", "error"]


@given(st.lists(st.dictionaries(st.sampled_from(_FIELDS), _STRANGE_VALUES, max_size=9), max_size=4))
def test_any_journal_is_read_and_summed_up(entries: list[Entry]) -> None:
    """Whatever stands in it, a run goes on, and its summary can be printed."""
    row = PromptRow("s0", 1, ImageSpec("a", "9:16", "2K"), "0" * 16)
    with TemporaryDirectory() as folder:
        lines = "".join(
            json.dumps({"id": "s0", "asked": row.asked, **each}) + "\n" for each in entries
        )
        Path(folder, "results.jsonl").write_text(lines)
        Path(folder, "s0.png").write_bytes(TINY_PNG)
        with Journal(Path(folder)) as kept:
            entry = kept.settled(row)
            done = Batch([], kept, lambda *_: None)
        bill = {"cost_usd": 0.0, "maybe_billed": {"requests": 0, "cost_usd": 0.0, "unpriced": 0}}
        settled = [] if entry is None else [entry]
        summary = summarize([row], settled, done, Spent(), bill)
        show_summary(summary, Path(folder), charged=True)
    assert summary["kept"] + len(summary["failed"]) + summary["left"] == 1
