"""Files that commands write: their type, their completeness, and checks before anything is sent."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
import subprocess
import sys
import threading
import types
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cli_kit import cli, environment
from images_samples import delivered, encoded, opened
from PIL import Image, ImageChops, ImageStat

from resilient_imagen import ImageResult
from resilient_imagen.cli import files, generate_one
from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.emulator import BackgroundEmulator
from resilient_imagen.images import convert
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.testing import TINY_PNG
from resilient_imagen.tuning.rows import Attempted, to_json

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]
tune = import_module("resilient_imagen.cli.tune")
FOX = ("generate", "a fox", "--resolution", "1K", "--aspect", "1:1")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the test's own directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "mime"),
    [("fox.png", "image/png"), ("fox.PNG", "image/png"), ("fox.webp", "image/webp")],
)
def test_the_extension_determines_the_type(
    name: str, mime: str, capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """A JPEG is converted to the type of the extension, looks the same, and a note states it."""
    assert cli(capsys, *FOX, "-o", "fox").code == 0
    ended = cli(capsys, *FOX, "-o", name)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[0].startswith(f"saved     {name} (1024 x 1024 pixels, {mime}, ")
    assert f"note      converted from image/jpeg to {mime}, to match its name" in ended.out
    assert sniff_mime(Path(name).read_bytes()) == mime
    assert len(imagen_emulator.google.requests) == 2
    with Image.open("fox.jpg") as before, Image.open(name) as after:
        assert max(ImageStat.Stat(ImageChops.difference(before, after.convert("RGB"))).mean) < 2


@pytest.mark.parametrize("name", ["fox.jpg", "fox.jpeg"])
def test_an_image_of_the_right_type_is_not_converted(name: str, capsys: Capsys) -> None:
    """The delivered bytes are saved unchanged."""
    for target in (name, "other"):
        ended = cli(capsys, *FOX, "-o", target, "--emulator")
        assert "converted" not in ended.out
    assert Path(name).read_bytes() == Path("other.jpg").read_bytes()


@pytest.mark.parametrize("name", ["fox.gif", "fox.avif", "fox.v2", "fox.GIF"])
def test_an_unsupported_extension_is_refused_before_a_request(
    name: str, capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """No image is made and paid for that could only be saved under a misleading name."""
    ended = cli(capsys, *FOX, "-o", name)
    assert ended.code == 2
    assert ended.complaint == (
        f"-o {name}: the extension {Path(name).suffix} is not supported; "
        "use .png, .jpg, .jpeg, .webp, or none"
    )
    assert imagen_emulator.google.requests == ()
    assert not Path(name).exists()


def saved(image: bytes, name: str) -> tuple[ImageResult, bytes]:
    """Save an image under this name; return the result and the file."""
    result = asyncio.run(generate_one._save(delivered(image), [Path(name)]))
    return result, Path(name).read_bytes()


def test_transparency_becomes_white_in_a_jpeg() -> None:
    """JPEG does not support transparency."""
    clear = encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG")
    result, data = saved(clear, "fox.jpg")
    assert result.mime_type == "image/jpeg"
    with opened(data) as picture:
        assert picture.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA"])
@pytest.mark.parametrize(("name", "mime"), [("fox.jpg", "image/jpeg"), ("fox.webp", "image/webp")])
def test_every_kind_of_image_can_be_converted(mode: str, name: str, mime: str) -> None:
    """Images in grey, with a palette and with 16 bits per channel are converted, too."""
    result, data = saved(encoded(Image.new(mode, (9, 16)), "PNG"), name)
    assert result.mime_type == sniff_mime(data) == mime
    with opened(data) as picture:
        assert picture.size == (9, 16)


def test_an_image_that_cannot_be_converted_is_saved_unchanged(capsys: Capsys) -> None:
    """A damaged image is paid for, so it is saved, with a warning about its name."""
    result, data = saved(TINY_PNG[:45], "fox.jpg")
    assert data == TINY_PNG[:45]
    assert result.adjustments == ()
    assert "fox.jpg contains image/png, unlike its name" in capsys.readouterr().err


def test_converting_leaves_the_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converting a large image takes seconds, so it runs in a thread."""
    threads = []

    def as_named(data: bytes, _mime: str, _path: Path) -> tuple[bytes, str]:
        threads.append(threading.current_thread())
        return data, "image/webp"

    monkeypatch.setattr(convert, "as_named", as_named)
    saved(TINY_PNG, "fox.webp")
    assert threads != [threading.main_thread()]


# -- checks before a request ------------------------------------------------------------------


@pytest.mark.parametrize("target", [(), ("-o", "fox.png"), ("-o", "fox")])
def test_an_unwritable_path_is_found_before_a_request(
    target: tuple[str, ...],
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
    imagen_emulator: BackgroundEmulator,
) -> None:
    """A path that cannot be written is found before a request is sent."""

    monkeypatch.setattr(os, "fsync", _full)
    ended = cli(capsys, *FOX, *target)
    assert ended.code == 2
    assert ended.complaint.endswith(" cannot be written: No space left on device")
    assert imagen_emulator.google.requests == ()


def test_a_disk_that_fills_up_is_reported_in_one_line(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line has the file and the system's description; no partial file is left."""
    real, calls = os.fsync, []

    def filling(file: int) -> None:
        calls.append(file)
        if len(calls) > 1:  # the first one was to see that the disk is not full
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", filling)
    ended = cli(capsys, *FOX, "-o", "fox", "--emulator")
    assert (ended.code, ended.complaint) == (1, "fox.jpg: No space left on device")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_no_file(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a full disk or Ctrl-C the old file is unchanged and no temporary file is left."""

    def stop(file: int) -> None:
        raise error

    (tmp_path / "fox.png").write_bytes(b"as before")
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(type(error)):
        files.write_whole(tmp_path / "fox.png", TINY_PNG)
    with pytest.raises((CommandError, KeyboardInterrupt)):
        files.check_writable(tmp_path / "fox.png")
    assert [path.name for path in tmp_path.iterdir()] == ["fox.png"]
    assert (tmp_path / "fox.png").read_bytes() == b"as before"


def _full(file: int) -> None:
    raise OSError(28, "No space left on device")


def test_no_other_file_is_touched(tmp_path: Path, capsys: Capsys) -> None:
    """A file or link whose name resembles a temporary file is not touched."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    Path(".fox.jpg.part").write_bytes(b"mine")
    Path(".other.jpg.part").symlink_to(victim)
    for name in ("fox.jpg", "other.jpg"):
        assert cli(capsys, *FOX, "-o", name, "--emulator").code == 0
        assert sniff_mime(Path(name).read_bytes()) == "image/jpeg"
    assert Path(".fox.jpg.part").read_bytes() == b"mine"
    assert Path(".other.jpg.part").is_symlink()
    assert victim.read_bytes() == b"precious"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """The file to which it points is unchanged."""
    victim, link = tmp_path / "victim", tmp_path / "fox.png"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    files.write_whole(link, TINY_PNG)
    assert not link.is_symlink()
    assert link.read_bytes() == TINY_PNG
    assert victim.read_bytes() == b"precious"


def test_a_link_in_place_of_a_temporary_file_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted link is neither followed nor removed."""
    monkeypatch.setattr(secrets, "token_hex", lambda count: "0" * 2 * count)
    planted = tmp_path / f".{'0' * 16}.part"
    planted.symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        files.write_whole(tmp_path / "fox.png", TINY_PNG)
    assert planted.is_symlink()
    assert not (tmp_path / "victim").exists()


@pytest.mark.skipif(os.name == "nt", reason="modes are of POSIX")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_mode_of_the_umask(mask: int, mode: int, tmp_path: Path) -> None:
    """The umask decides the mode, as for every file that a user creates."""
    before = os.umask(mask)
    try:
        files.write_whole(tmp_path / "fox.png", TINY_PNG)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "fox.png").stat().st_mode) == mode


def test_an_impossible_name_is_refused(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """A name that is too long, or that a directory has, is refused before a request."""
    assert cli(capsys, *FOX, "-o", "f" * 300).complaint.endswith("File name too long")
    Path("fox.png").mkdir()
    ended = cli(capsys, *FOX, "-o", "fox")
    assert (ended.code, ended.complaint) == (2, "fox.png exists and is not a file")
    assert imagen_emulator.google.requests == ()


# -- devices --------------------------------------------------------------------------


def test_a_device_is_written_to(capsys: Capsys) -> None:
    """A device is not replaced, gets no extension, and causes no warning about its name."""
    ended = cli(capsys, *FOX, "-o", os.devnull, "--emulator")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"saved     {os.devnull} (1024 x 1024 pixels, image/jpeg, ")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="this system has no such name")
@pytest.mark.parametrize("into", ["a pipe", "a file"])
def test_an_image_can_go_to_standard_output(into: str, tmp_path: Path) -> None:
    """Standard output receives the image alone; the report goes to standard error."""
    command = [sys.executable, "-m", "resilient_imagen", *FOX, "-o", "/dev/stdout"]
    with (tmp_path / "fox").open("wb") as file:
        done = subprocess.run(
            [*command, "--emulator"],
            env=environment(),
            stdout=subprocess.PIPE if into == "a pipe" else file,
            stderr=subprocess.PIPE,
            timeout=100,
            check=True,
        )
    picture = done.stdout or (tmp_path / "fox").read_bytes()
    assert sniff_mime(picture) == "image/jpeg"
    assert picture.endswith(b"\xff\xd9")
    assert b"saved     /dev/stdout (" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"fox"}


# -- files of other commands ----------------------------------------------------------------

GOOD = to_json(Attempted(1e9, "c", "google:gemini-3-pro-image", 2.0)) + "\n"


@pytest.fixture
def untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the sweep of `tune` and its report by short ones."""
    monkeypatch.setattr(tune, "_swept", lambda *_: None)
    monkeypatch.setattr(tune, "_show", lambda *_: None)
    report: Any = types.ModuleType("report_html")
    report.page = lambda *_: "<p>report</p>"
    monkeypatch.setitem(sys.modules, "resilient_imagen.tuning.report_html", report)


@pytest.mark.usefixtures("untuned")
@pytest.mark.parametrize(
    ("command", "option", "content"),
    [("cost", "--save", GOOD), ("tune", "--save", GOOD), ("tune", "--html", "<p>report</p>")],
)
def test_saved_recordings_and_reports_follow_no_link(
    command: str, option: str, content: str, capsys: Capsys, tmp_path: Path
) -> None:
    """A planted link is replaced, and a file named like a temporary one is not touched."""
    Path("calls.jsonl").write_text(GOOD)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    Path("result").symlink_to(victim)
    Path(".result.part").symlink_to(victim)
    ended = cli(capsys, command, "calls.jsonl", option, "result")
    assert ended.code == 0, ended.err
    assert Path("result").read_text() == content
    assert not Path("result").is_symlink()
    assert Path(".result.part").is_symlink()
    assert victim.read_bytes() == b"precious"


@pytest.mark.usefixtures("untuned")
@pytest.mark.parametrize(("command", "option"), [("cost", "--save"), ("tune", "--html")])
def test_a_full_disk_leaves_the_old_file(
    command: str, option: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line describes the error; the old file is unchanged and no other file is left."""
    Path("calls.jsonl").write_text(GOOD)
    Path("result").write_text("as before")
    monkeypatch.setattr(os, "fsync", _full)
    ended = cli(capsys, command, "calls.jsonl", option, "result")
    assert ended.code == 2
    assert ended.complaint == "result cannot be written: No space left on device"
    assert Path("result").read_text() == "as before"
    assert sorted(path.name for path in Path().iterdir()) == ["calls.jsonl", "result"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no such device")
@pytest.mark.usefixtures("untuned")
@pytest.mark.parametrize(("command", "option"), [("cost", "--save"), ("tune", "--html")])
def test_a_full_device_is_reported_in_one_line(command: str, option: str, capsys: Capsys) -> None:
    """A device is written to directly, and its error is reported."""
    Path("calls.jsonl").write_text(GOOD)
    ended = cli(capsys, command, "calls.jsonl", option, "/dev/full")
    assert ended.code in {1, 2}
    assert ended.complaint == "/dev/full: No space left on device"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no such device")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("cost", "--help"),
        ("emulate", "--example"),
        ("cost", "calls.jsonl"),
    ],
    ids=" ".join,
)
def test_a_full_output_is_reported_in_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """A failure to write standard output is one line without a traceback."""
    Path("calls.jsonl").write_text(GOOD)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "resilient_imagen", *arguments],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "resilient-imagen: No space left on device\n"


def test_a_report_that_cannot_be_written_is_refused_before_the_sweep(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is reported before a sweep of minutes."""
    Path("calls.jsonl").write_text(GOOD)
    monkeypatch.setattr(tune, "_swept", pytest.fail)
    monkeypatch.setattr(os, "fsync", _full)
    ended = cli(capsys, "tune", "calls.jsonl", "--html", "report.html")
    assert ended.code == 2
    assert ended.complaint == "report.html cannot be written: No space left on device"
