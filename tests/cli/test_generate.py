"""``generate`` with a prompt: what it saves, says and refuses, and how it ends."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cli_kit import Ended, cli, run
from PIL import Image

from resilient_imagen import ImageClient
from resilient_imagen.emulator import BackgroundEmulator, faults
from resilient_imagen.images.inspect import pixel_size, sniff_mime
from resilient_imagen.testing import TINY_PNG

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a directory land in the test's own."""
    monkeypatch.chdir(tmp_path)


def emulated(capsys: Capsys, *arguments: object) -> Ended:
    return cli(capsys, "generate", *arguments, "--emulator")


@pytest.mark.parametrize("name", ["vertex", "google_b"])
def test_the_emulator_stands_for_every_provider_of_the_routes(
    name: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request leaves the machine, whatever account and address the environment has."""
    monkeypatch.setenv("IMAGE_GEN_ROUTES", f"{name}:gemini-3-pro-image")
    monkeypatch.setenv("IMAGE_GEN_PROVIDER_GOOGLE_B", "google")
    monkeypatch.setenv("GOOGLE_B_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("VERTEX_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "not-this-one")
    ended = emulated(capsys, "a fox", "-o", "fox.jpg", "--resolution", "1K")
    assert (ended.code, ended.err) == (0, "")
    assert f"provider  {name}\nmodel     gemini-3-pro-image\n" in ended.out


def test_a_picture_is_saved_and_told_about(capsys: Capsys, tmp_path: Path) -> None:
    """Who served, how many requests, whether by fallback, seconds and cost: a line each."""
    ended = emulated(capsys, "a fox", "-o", "fox.jpg", "--aspect", "16:9", "--resolution", "1K")
    assert ended.code == 0
    assert ended.err == ""
    width, height = pixel_size((tmp_path / "fox.jpg").read_bytes()) or (0, 0)
    assert width / height == pytest.approx(16 / 9, rel=0.02)
    told = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert told["saved"].startswith("fox.jpg (1376 x 768 pixels, image/jpeg, ")
    assert told["provider"] == "google"
    assert told["model"] == "gemini-3-pro-image"
    assert told["requests"] == "1"
    assert told["fallback"] == "no"
    assert float(told["seconds"]) < 60
    assert told["cost"] == "nothing: emulated (else $0.1340)"


def test_the_type_decides_where_the_name_does_not(capsys: Capsys, tmp_path: Path) -> None:
    """No extension: the true one is added."""
    assert emulated(capsys, "a fox", "-o", "fox", "--resolution", "1K").err == ""
    assert sniff_mime((tmp_path / "fox.jpg").read_bytes()) == "image/jpeg"


def test_without_a_name_nothing_is_written_over(capsys: Capsys, tmp_path: Path) -> None:
    """The second picture gets a name beside the first's."""
    for _ in range(2):
        assert emulated(capsys, "a fox", "--resolution", "1K").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"image.jpg", "image-2.jpg"}


def test_several_pictures_are_numbered(capsys: Capsys, tmp_path: Path) -> None:
    """With a name they have it; without one nothing is written over. JSON lists all files."""
    ended = emulated(capsys, "a fox", "--n", "3", "-o", "fox.webp", "--resolution", "1K")
    assert (ended.code, ended.err) == (0, "")
    assert [line.split()[1] for line in ended.out.splitlines() if line.startswith("saved")] == [
        "fox.webp",
        "fox-2.webp",
        "fox-3.webp",
    ]
    (tmp_path / "image-2.jpg").write_bytes(b"mine")
    ended = emulated(capsys, "a fox", "--n", "2", "--json", "--resolution", "1K")
    told = json.loads(ended.out)
    assert (told["path"], told["paths"]) == ("image.jpg", ["image.jpg", "image-3.jpg"])
    assert "images" not in told
    names = ["fox.webp", "fox-2.webp", "fox-3.webp"]
    assert {sniff_mime((tmp_path / name).read_bytes()) for name in names} == {"image/webp"}
    assert (tmp_path / "image-2.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("output", ["fox.png", "fox"])
def test_a_directory_at_a_further_name_is_refused_before_anything_is_sent(
    output: str, capsys: Capsys, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """Otherwise the pictures would be paid for and could not be saved."""
    (tmp_path / "fox-3.png").mkdir()
    ended = cli(capsys, "generate", "a fox", "--n", "3", "-o", output)
    assert (ended.code, ended.complaint) == (2, "fox-3.png exists and is not a file")
    assert imagen_emulator.google.requests == ()
    assert cli(capsys, "generate", "a fox", "--n", "2", "-o", output).code == 0


def test_options_are_flags(
    capsys: Capsys, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """Each goes to the vendor that has it; the format is delivered in any case."""
    flags = ("--format", "webp", "--background", "opaque", "--quality", "low", "--seed", "7")
    imagen_emulator.google.fail(faults.blocked(), times=1)
    ended = cli(capsys, "generate", "a fox", *flags, "-o", "fox")
    assert ended.code == 1
    ended = cli(capsys, "generate", "a fox", *flags, "-o", "fox")
    assert ended.code == 0
    assert sniff_mime((tmp_path / "fox.webp").read_bytes()) == "image/webp"
    assert "google does not support quality" in ended.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--format", "gif"), "'gif' is not one of 'png', 'jpeg', 'webp'"),
        (("--format", "jpeg", "--background", "transparent"), "use png or webp"),
        (("--format", "jpeg", "-o", "fox.png"), "--format jpeg contradicts the name fox.png"),
        (("--background", "transparent", "-o", "fox.jpg"), "contradicts the name fox.jpg"),
        (("--mask", "here.png"), "--mask needs exactly one --ref"),
    ],
)
def test_options_that_contradict_are_refused(
    arguments: tuple[str, ...], text: str, capsys: Capsys, tmp_path: Path
) -> None:
    """The command says which, before anything is sent."""
    (tmp_path / "here.png").write_bytes(TINY_PNG)
    ended = emulated(capsys, "a fox", *arguments)
    assert ended.code == 2
    assert text in ended.err


def test_the_number_of_images_is_limited(capsys: Capsys) -> None:
    """The message has the option, the value and the limit, in the words of typer's version."""
    ended = emulated(capsys, "a fox", "--n", "11")
    assert ended.code == 2
    assert all(part in ended.err for part in ("--n", "11", "10"))


def test_a_mask_edits_the_reference(
    capsys: Capsys, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """The route that supports it is asked first."""
    picture = Image.new("RGBA", (32, 32))
    picture.save(tmp_path / "mask.png")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "fox.png")
    files = ("--ref", "fox.png", "--mask", "mask.png", "-o", "new.png")
    ended = cli(capsys, "generate", "more red", *files)
    assert ended.code == 0, ended.err
    (seen,) = imagen_emulator.openai.requests
    assert seen.operation == "edit"
    assert not imagen_emulator.google.requests


def test_references_go_along(
    capsys: Capsys, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """Files named by --ref arrive, in their order, byte for byte."""
    (tmp_path / "a.png").write_bytes(TINY_PNG)
    ended = cli(capsys, "generate", "a fox", "--ref", "a.png", "--ref", "a.png", "-o", "fox")
    assert ended.code == 0
    (seen,) = imagen_emulator.google.requests
    assert [each.size for each in seen.references] == [len(TINY_PNG)] * 2


def test_a_reference_may_be_a_data_url(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """As in a row of a file."""
    url = "data:image/png;base64," + base64.b64encode(TINY_PNG).decode()
    assert cli(capsys, "generate", "a fox", "--ref", url, "-o", "fox").code == 0
    (seen,) = imagen_emulator.google.requests
    assert [each.size for each in seen.references] == [len(TINY_PNG)]


def test_json_is_for_programs(capsys: Capsys) -> None:
    """One object with the result's fields and the file, without the picture itself."""
    ended = emulated(capsys, "a fox", "-o", "fox", "--json", "--force-open", "google")
    told = json.loads(ended.out)
    assert told["path"] == "fox.png"
    assert (told["provider"], told["fallback_reason"]) == ("openai", "circuit_open")
    assert told["usage"]["cost_usd"] > 0
    assert "image_base64" not in told
    assert Path(told["path"]).stat().st_size == told["bytes"]


def test_a_failure_is_one_line(
    capsys: Capsys, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """With its reason and what was spent; as JSON, too, if that is wanted. No file is left."""
    imagen_emulator.google.set(faults.blocked("PROHIBITED_CONTENT"))
    ended = cli(capsys, "generate", "a secret fox", "-o", "fox.png", "--json")
    assert ended.code == 1
    assert ended.complaint == (
        "google gemini-3-pro-image: blocked by safety filters (content_blocked, 1 request sent)"
    )
    told = json.loads(ended.out)
    assert told["reason"] == "content_blocked"
    assert [attempt["provider"] for attempt in told["attempts"]] == ["google"]
    assert "secret" not in ended.out + ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_later_time_is_passed_on(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    """What the servers say about coming back stands in the line."""
    monkeypatch.setenv("IMAGE_GEN_MAX_RETRIES", "0")
    for vendor in imagen_emulator.app.vendors:
        vendor.set(faults.rate_limited(retry_after=33))
    ended = cli(capsys, "generate", "a fox")
    assert ended.code == 1
    assert "rate_limited" in ended.complaint
    assert ended.complaint.endswith("try again in 33 s)")


def test_without_a_key(tmp_path: Path) -> None:
    """One line says which variable to set, and how to go without."""
    done = run("generate", "a fox", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "resilient-imagen: no API key: set GOOGLE_GENAI_API_KEY or OPENAI_API_KEY; "
        "--emulator needs neither\n"
    )


def test_one_key_is_enough(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    """Without the fallback's key it works, and is said to have no fallback."""
    monkeypatch.delenv("OPENAI_API_KEY")
    ended = cli(capsys, "generate", "a fox", "-o", "fox")
    assert ended.code == 0
    assert ended.complaint == "OPENAI_API_KEY is not set: routes to openai are off"
    assert len(imagen_emulator.google.requests) == 1


BAD = {
    "aspect": (["a fox", "--aspect", "7:1"], "aspect_ratio '7:1' is not allowed; use one of 1:1,"),
    "resolution": (["a fox", "--resolution", "9K"], "Invalid value for '--resolution'"),
    "empty prompt": ([" "], "prompt must be a str that is not empty"),
    "no prompt": ([], "nothing to draw: give a prompt in quotes, or --from prompts.jsonl"),
    "no such reference": (["a fox", "--ref", "no.png"], "--ref no.png: there is no such file"),
    "no path": (["a fox", "--ref", "A" * 9000], "--ref a text of 9000 characters: there is no"),
    "inner address": (["a fox", "--ref", "https://127.0.0.1/"], "https://127.0.0.1/ leads to"),
    "bad data": (["a fox", "--ref", "data:image/png;base64,QUFB"], "a data: URL is not an image"),
    "no picture": (["a fox", "--ref", "text.png"], "text.png is not an image of a known type"),
    "no such directory": (
        ["a fox", "-o", "no/fox.png"],
        "-o: no is not a directory; create it first",
    ),
    "a directory": (["a fox", "-o", "folder"], "-o folder is a directory; name a file"),
    "deadline": (["a fox", "--deadline", "-1"], "deadline must be a number of seconds above zero"),
    "whose model": (["a fox", "--model", "gpt-image-2"], "model gpt-image-2 belongs to openai"),
    "unknown model": (["a fox", "--model", "gemini-3-pro-imag"], "--model gemini-3-pro-imag: no"),
    "provider": (["a fox", "--force-open", "bing"], "IMAGE_GEN_FORCE_OPEN names bing"),
    "prompts twice": (["a fox", "--from", "text.png"], "with --from, the file contains prompts"),
    "no folder": (["--from", "text.png"], "--from needs -o: the directory for the images"),
    "unknown option": (["a fox", "--speed", "9"], "No such option"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_costs_nothing(
    case: str, capsys: Capsys, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """Exit code 2, and no request is sent."""
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder").mkdir()
    arguments, expected = BAD[case]
    ended = cli(capsys, "generate", *arguments)
    assert ended.code == 2
    assert ended.complaint.startswith(expected)
    assert imagen_emulator.google.requests == imagen_emulator.openai.requests == ()


def test_a_wrong_variable_is_named(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is checked like everything else that people type."""
    monkeypatch.setenv("IMAGE_GEN_MAX_RETRIES", "many")
    ended = emulated(capsys, "a fox")
    assert ended.code == 2
    assert ended.complaint.startswith("IMAGE_GEN_MAX_RETRIES: ")


def test_a_bug_is_one_line_without_its_text(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its type and place are for a report; its text might hold the prompt."""

    async def generate(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a secret fox")

    monkeypatch.setattr(ImageClient, "generate", generate)
    ended = emulated(capsys, "a secret fox")
    assert ended.code == 1
    assert ended.complaint.startswith("internal error, please report it: ZeroDivisionError at test")
    assert "secret" not in ended.err


def test_a_proxy_does_not_stand_before_the_emulator(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not reach a server inside this process."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert emulated(capsys, "a fox", "-o", "fox").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ((), 0, "Usage: resilient-imagen"),
        (("--help",), 0, "generate"),
        (("generate", "--help"), 0, "--force-open"),
        (("demo", "--help"), 0, "--jaeger"),
        (("emulate", "--help"), 0, "--script"),
        (("--version",), 0, "resilient-imagen "),
    ],
)
def test_help(capsys: Capsys, arguments: tuple[str, ...], code: int, expected: str) -> None:
    """Help and version are on standard output."""
    ended = cli(capsys, *arguments)
    assert (ended.code, ended.err) == (code, "")
    assert expected in ended.out


def test_without_the_extra_it_says_what_to_install(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, for whoever installed only the library; the emulator's extra likewise."""
    import builtins
    import sys

    real = builtins.__import__

    def without(missing: str) -> None:
        def importing(name: str, *args: object, **kwargs: object) -> object:
            if name.partition(".")[0] == missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=missing)
            return real(name, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(builtins, "__import__", importing)

    without("typer")
    monkeypatch.setattr(sys, "argv", ["resilient-imagen"])
    from resilient_imagen.cli import main

    with pytest.raises(SystemExit, match=r"pip install 'resilient-imagen\[cli\]'"):
        main()
    for name in [name for name in sys.modules if name.startswith("resilient_imagen.emulator")]:
        monkeypatch.delitem(sys.modules, name)
    without("h11")
    ended = emulated(capsys, "a fox")
    assert ended.code == 2
    assert ended.complaint == "h11 is missing: pip install 'resilient-imagen[emulator]'"


def test_a_terminal_is_told_what_goes_on(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    """Retries and the way to the fallback, on standard error, and only while it lasts."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # how a terminal is pretended to be
    monkeypatch.setenv("IMAGE_GEN_RETRY_BASE_DELAY", "0.5")
    monkeypatch.setenv("IMAGE_GEN_IPM", "6000")
    imagen_emulator.google.set(faults.overload().after(0.3))
    imagen_emulator.openai.set_latency(0.4)
    ended = cli(capsys, "generate", "a fox", "-o", "fox")
    assert ended.code == 0
    for words in (
        "google gemini-3-pro-image is drawing",
        "google: overloaded; again in",
        "openai gpt-image-2.5-flare is drawing",
    ):
        assert words in ended.err
    assert "fallback  yes: overloaded" in ended.out
