"""Where a picture goes: as its name says, in full or not at all, and never paid for in vain."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cli_kit import cli, environment
from images_samples import delivered, encoded, opened
from PIL import Image, ImageChops, ImageStat

from resilient_imagen.cli import files, pictures
from resilient_imagen.emulator import BackgroundEmulator
from resilient_imagen.images import convert
from resilient_imagen.images.sniff import sniff_mime
from resilient_imagen.testing import TINY_PNG

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]
FOX = ("generate", "a fox", "--resolution", "1K", "--aspect", "1:1")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a directory land in the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "mime"),
    [("fox.png", "image/png"), ("fox.PNG", "image/png"), ("fox.webp", "image/webp")],
)
def test_the_name_decides_the_type(
    name: str, mime: str, capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """A vendor's JPEG becomes what the extension says, looks the same, and a note says so."""
    assert cli(capsys, *FOX, "-o", "fox").code == 0
    ended = cli(capsys, *FOX, "-o", name)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[0].startswith(f"saved     {name} (1024 x 1024 pixels, {mime}, ")
    assert f"note      converted from image/jpeg to {mime}, as its name asks" in ended.out
    assert sniff_mime(Path(name).read_bytes()) == mime
    assert len(imagen_emulator.google.requests) == 2
    with Image.open("fox.jpg") as before, Image.open(name) as after:
        assert max(ImageStat.Stat(ImageChops.difference(before, after.convert("RGB"))).mean) < 2


@pytest.mark.parametrize("name", ["fox.jpg", "fox.jpeg"])
def test_the_right_name_changes_nothing(name: str, capsys: Capsys) -> None:
    """Byte for byte as delivered."""
    for target in (name, "other"):
        ended = cli(capsys, *FOX, "-o", target, "--emulator")
        assert "note" not in ended.out
    assert Path(name).read_bytes() == Path("other.jpg").read_bytes()


def test_a_name_of_no_known_type_keeps_the_bytes(capsys: Capsys) -> None:
    """And is said to be wrong."""
    ended = cli(capsys, *FOX, "-o", "fox.gif", "--emulator")
    assert ended.complaint == "fox.gif holds image/jpeg, whatever its name says"
    assert sniff_mime(Path("fox.gif").read_bytes()) == "image/jpeg"


def test_what_is_clear_becomes_white() -> None:
    """A JPEG knows no transparency."""
    clear = encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG")
    saved = asyncio.run(pictures.as_named(delivered(clear), Path("fox.jpg")))
    assert saved.mime_type == "image/jpeg"
    with opened(saved.image_bytes) as picture:
        assert picture.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA"])
@pytest.mark.parametrize("name", ["fox.jpg", "fox.webp"])
def test_every_kind_of_picture_can_be_converted(mode: str, name: str) -> None:
    """Grey, palette and deep ones, too."""
    given = delivered(encoded(Image.new(mode, (9, 16)), "PNG"))
    saved = asyncio.run(pictures.as_named(given, Path(name)))
    assert not pictures.misnamed(Path(name), saved.mime_type)
    with opened(saved.image_bytes) as picture:
        assert picture.size == (9, 16)


def test_what_cannot_be_converted_is_kept() -> None:
    """It is paid for."""
    torn = delivered(TINY_PNG[:45])
    assert asyncio.run(pictures.as_named(torn, Path("fox.jpg"))) is torn


def test_converting_leaves_the_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds for a large picture."""
    threads = []

    def as_named(data: bytes, _mime: str, _path: Path) -> tuple[bytes, str]:
        threads.append(threading.current_thread())
        return data, "image/webp"

    monkeypatch.setattr(convert, "as_named", as_named)
    asyncio.run(pictures.as_named(delivered(TINY_PNG), Path("fox.webp")))
    assert threads != [threading.main_thread()]


# -- proven beforehand ------------------------------------------------------------------------


@pytest.mark.parametrize("target", [(), ("-o", "fox.png"), ("-o", "fox")])
def test_a_full_disk_costs_nothing(
    target: tuple[str, ...],
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
    imagen_emulator: BackgroundEmulator,
) -> None:
    """What cannot be written is found out before a request is sent."""

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_synced", full)
    ended = cli(capsys, *FOX, *target)
    assert ended.code == 2
    assert ended.complaint.endswith(" cannot be written: No space left on device")
    assert imagen_emulator.google.requests == ()


def test_a_disk_that_fills_up_is_one_line(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own words, with the file, and no half of it."""
    calls = []

    def filling(path: Path, data: bytes) -> None:
        calls.append(path)
        path.write_bytes(b"")
        if len(calls) > 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_synced", filling)
    ended = cli(capsys, *FOX, "-o", "fox", "--emulator")
    assert (ended.code, ended.complaint) == (1, "fox.jpg: No space left on device")


def test_nothing_is_left_of_what_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file would look like one."""

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_synced(tmp_path / "fox.png", TINY_PNG)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_cannot_be_is_refused(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """Too long a one, or one at which a directory stands once it has its extension."""
    assert cli(capsys, *FOX, "-o", "f" * 300).complaint.endswith("File name too long")
    Path("fox.png").mkdir()
    ended = cli(capsys, *FOX, "-o", "fox")
    assert (ended.code, ended.complaint) == (2, "fox.png is in the way: it is no file")
    assert imagen_emulator.google.requests == ()


# -- what is no file --------------------------------------------------------------------------


def test_a_device_stays_one(capsys: Capsys) -> None:
    """It is written to as it is: not replaced, no extension, no word about its name."""
    ended = cli(capsys, *FOX, "-o", os.devnull, "--emulator")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"saved     {os.devnull} (1024 x 1024 pixels, image/jpeg, ")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="this system has no such name")
@pytest.mark.parametrize("into", ["a pipe", "a file"])
def test_the_standard_output_is_the_picture(into: str, tmp_path: Path) -> None:
    """And nothing else: what there is to say goes to standard error."""
    command = [sys.executable, "-m", "resilient_imagen.cli", *FOX, "-o", "/dev/stdout"]
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
