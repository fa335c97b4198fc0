"""``generate`` with a prompt: its files, its output, its errors and exit codes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cli_kit import Ended, cli, run
from PIL import Image

from resilient_imagen import ImageClient
from resilient_imagen.cli import generate
from resilient_imagen.emulator import BackgroundEmulator, faults
from resilient_imagen.images.inspect import pixel_size, sniff_mime
from resilient_imagen.testing import TINY_PNG

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the test's own directory."""
    monkeypatch.chdir(tmp_path)


def emulated(capsys: Capsys, *arguments: object) -> Ended:
    return cli(capsys, "generate", *arguments, "--emulator")


@pytest.mark.parametrize("name", ["vertex", "google_b"])
def test_the_emulator_replaces_every_provider_of_the_routes(
    name: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests go to the emulator, although the environment has accounts and addresses."""
    monkeypatch.setenv("IMAGE_GEN_ROUTES", f"{name}:gemini-3-pro-image")
    monkeypatch.setenv("IMAGE_GEN_PROVIDER_GOOGLE_B", "google")
    monkeypatch.setenv("GOOGLE_B_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("VERTEX_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "not-this-one")
    ended = emulated(capsys, "a fox", "-o", "fox.jpg", "--resolution", "1K")
    assert (ended.code, ended.err) == (0, "")
    assert f"provider  {name}\nmodel     gemini-3-pro-image\n" in ended.out


def test_an_image_is_saved_and_described(capsys: Capsys, tmp_path: Path) -> None:
    """Provider, model, requests, fallback, seconds and cost each have a line."""
    ended = emulated(capsys, "a fox", "-o", "fox.jpg", "--aspect", "16:9", "--resolution", "1K")
    assert ended.code == 0
    assert ended.err == ""
    width, height = pixel_size((tmp_path / "fox.jpg").read_bytes()) or (0, 0)
    assert width / height == pytest.approx(16 / 9, rel=0.02)
    printed = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert printed["saved"].startswith("fox.jpg (1376 x 768 pixels, image/jpeg, ")
    assert printed["provider"] == "google"
    assert printed["model"] == "gemini-3-pro-image"
    assert printed["requests"] == "1"
    assert printed["fallback"] == "no"
    assert float(printed["seconds"]) < 60
    assert printed["cost"] == "nothing: emulated (else $0.1340)"


def test_a_name_without_an_extension_gets_one(capsys: Capsys, tmp_path: Path) -> None:
    """The extension is that of the image's type."""
    assert emulated(capsys, "a fox", "-o", "fox", "--resolution", "1K").err == ""
    assert sniff_mime((tmp_path / "fox.jpg").read_bytes()) == "image/jpeg"


def test_a_default_name_replaces_no_file(capsys: Capsys, tmp_path: Path) -> None:
    """Without -o, a second image gets a name that is free."""
    for _ in range(2):
        assert emulated(capsys, "a fox", "--resolution", "1K").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"image.jpg", "image-2.jpg"}


def test_several_images_are_numbered(capsys: Capsys, tmp_path: Path) -> None:
    """Numbers follow the given name; default names are free ones; JSON lists all files."""
    ended = emulated(capsys, "a fox", "--n", "3", "-o", "fox.webp", "--resolution", "1K")
    assert (ended.code, ended.err) == (0, "")
    assert [line.split()[1] for line in ended.out.splitlines() if line.startswith("saved")] == [
        "fox.webp",
        "fox-2.webp",
        "fox-3.webp",
    ]
    (tmp_path / "image-2.jpg").write_bytes(b"mine")
    ended = emulated(capsys, "a fox", "--n", "2", "--json", "--resolution", "1K")
    printed = json.loads(ended.out)
    assert (printed["path"], printed["paths"]) == ("image.jpg", ["image.jpg", "image-3.jpg"])
    assert "images" not in printed
    names = ["fox.webp", "fox-2.webp", "fox-3.webp"]
    assert {sniff_mime((tmp_path / name).read_bytes()) for name in names} == {"image/webp"}
    assert (tmp_path / "image-2.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("output", ["fox.png", "fox"])
def test_a_directory_at_a_further_name_is_refused_before_anything_is_sent(
    output: str,
    capsys: Capsys,
    tmp_path: Path,
    imagen_emulator: BackgroundEmulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The names of all images are checked before a request."""
    monkeypatch.setenv("IMAGE_GEN_IPM", "60000")
    (tmp_path / "fox-3.png").mkdir()
    ended = cli(capsys, "generate", "a fox", "--n", "3", "-o", output)
    assert (ended.code, ended.complaint) == (2, "fox-3.png exists and is not a file")
    assert imagen_emulator.google.requests == ()
    assert cli(capsys, "generate", "a fox", "--n", "2", "-o", output).code == 0


def test_options_of_a_request_are_flags(
    capsys: Capsys, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """Each option is sent to the vendor that supports it; the format is always delivered."""
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
    """The message names the options, and nothing is sent."""
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
    """The route that supports masks is asked first."""
    picture = Image.new("RGBA", (32, 32))
    picture.save(tmp_path / "mask.png")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "fox.png")
    files = ("--ref", "fox.png", "--mask", "mask.png", "-o", "new.png")
    ended = cli(capsys, "generate", "more red", *files)
    assert ended.code == 0, ended.err
    (seen,) = imagen_emulator.openai.requests
    assert seen.operation == "edit"
    assert not imagen_emulator.google.requests


def test_references_are_sent(
    capsys: Capsys, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """Files of --ref are sent in their order and unchanged."""
    (tmp_path / "a.png").write_bytes(TINY_PNG)
    ended = cli(capsys, "generate", "a fox", "--ref", "a.png", "--ref", "a.png", "-o", "fox")
    assert ended.code == 0
    (seen,) = imagen_emulator.google.requests
    assert [each.size for each in seen.references] == [len(TINY_PNG)] * 2


def test_a_reference_may_be_a_data_url(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """A data URL is decoded and sent."""
    url = "data:image/png;base64," + base64.b64encode(TINY_PNG).decode()
    assert cli(capsys, "generate", "a fox", "--ref", url, "-o", "fox").code == 0
    (seen,) = imagen_emulator.google.requests
    assert [each.size for each in seen.references] == [len(TINY_PNG)]


def test_json_has_the_result_without_the_image(capsys: Capsys) -> None:
    """One object has the fields of the result and the path of the file."""
    ended = emulated(capsys, "a fox", "-o", "fox", "--json", "--force-open", "google")
    printed = json.loads(ended.out)
    assert printed["path"] == "fox.png"
    assert (printed["provider"], printed["fallback_reason"]) == ("openai", "circuit_open")
    assert printed["usage"]["cost_usd"] > 0
    assert "image_base64" not in printed
    assert Path(printed["path"]).stat().st_size == printed["bytes"]


def test_a_failure_is_reported_in_one_line(
    capsys: Capsys, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """The line has reason and number of requests; --json prints more; no file is left."""
    imagen_emulator.google.set(faults.blocked("PROHIBITED_CONTENT"))
    ended = cli(capsys, "generate", "a secret fox", "-o", "fox.png", "--json")
    assert ended.code == 1
    assert ended.complaint == (
        "google gemini-3-pro-image: blocked by safety filters (content_blocked, 1 request sent)"
    )
    printed = json.loads(ended.out)
    assert printed["reason"] == "content_blocked"
    assert [attempt["provider"] for attempt in printed["attempts"]] == ["google"]
    assert "secret" not in ended.out + ended.err
    assert list(tmp_path.iterdir()) == []


def test_the_servers_hint_is_reported(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    """The line states when to try again."""
    monkeypatch.setenv("IMAGE_GEN_MAX_RETRIES", "0")
    for vendor in imagen_emulator.app.vendors:
        vendor.set(faults.rate_limited(retry_after=33))
    ended = cli(capsys, "generate", "a fox")
    assert ended.code == 1
    assert "rate_limited" in ended.complaint
    assert ended.complaint.endswith("try again in 33 s)")


def test_without_a_key(tmp_path: Path) -> None:
    """One line names the variables to set and the option that needs none."""
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
    """Without the fallback's key the image is made, with a warning."""
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
    "no path": (["a fox", "--ref", "A" * 9000], "--ref a string of 9000 characters: there is no"),
    "inner address": (["a fox", "--ref", "https://127.0.0.1/"], "https://127.0.0.1/ leads to"),
    "password": (["a fox", "--ref", "https://me:pw@127.0.0.1/?a=b"], "https://127.0.0.1/ is an"),
    "no address": (
        ["a fox", "--ref", "https://me:pw/pw@host"],
        "a reference is not a valid address",
    ),
    "bad data": (["a fox", "--ref", "data:image/png;base64,QUFB"], "a data: URL is not an image"),
    "no picture": (["a fox", "--ref", "text.png"], "text.png is not an image of a known type"),
    "no such directory": (
        ["a fox", "-o", "no/fox.png"],
        "-o: no is not a directory; create it first",
    ),
    "a directory": (["a fox", "-o", "folder"], "-o folder is a directory; name a file"),
    "deadline": (
        ["a fox", "--deadline", "-1"],
        "deadline must be a number of seconds above zero",
    ),
    "whose model": (["a fox", "--model", "gpt-image-2"], "model gpt-image-2 belongs to openai"),
    "unknown model": (["a fox", "--model", "gemini-3-pro-imag"], "--model gemini-3-pro-imag: no"),
    "provider": (["a fox", "--force-open", "bing"], "IMAGE_GEN_FORCE_OPEN names bing"),
    "prompts twice": (["a fox", "--from", "text.png"], "with --from, the file contains prompts"),
    "no folder": (["--from", "text.png"], "--from needs -o: the directory for the images"),
    "unknown option": (["a fox", "--speed", "9"], "No such option"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_reported_in_one_line_before_a_request(
    case: str, capsys: Capsys, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """The exit code is 2, and no request is sent."""
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder").mkdir()
    arguments, expected = BAD[case]
    ended = cli(capsys, "generate", *arguments)
    assert ended.code == 2
    assert ended.complaint.startswith(expected)
    assert imagen_emulator.google.requests == imagen_emulator.openai.requests == ()


def test_a_wrong_variable_is_named(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with a value that is not allowed is bad input."""
    monkeypatch.setenv("IMAGE_GEN_MAX_RETRIES", "many")
    ended = emulated(capsys, "a fox")
    assert ended.code == 2
    assert ended.complaint.startswith("IMAGE_GEN_MAX_RETRIES: ")


def test_many_images_need_file_locks(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, the message names the systems that have the locks."""
    (tmp_path / "prompts.txt").write_text("a fox")
    monkeypatch.setattr(generate, "find_spec", lambda name: None)
    ended = emulated(capsys, "--from", "prompts.txt", "-o", "images")
    assert ended.code == 2
    assert ended.complaint == "--from needs the file locks of Linux or macOS, for its directory"


def test_a_bug_is_reported_without_its_text(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line has the type and place of the error, but not its text, which has the prompt."""

    async def generate(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a secret fox")

    monkeypatch.setattr(ImageClient, "generate", generate)
    ended = emulated(capsys, "a secret fox")
    assert ended.code == 1
    assert ended.complaint.startswith("internal error, please report it: ZeroDivisionError at test")
    assert "secret" not in ended.err


def test_the_emulator_is_not_reached_through_a_proxy(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies of the environment are not used for the emulator."""
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
    """Help and version are printed on standard output."""
    ended = cli(capsys, *arguments)
    assert (ended.code, ended.err) == (code, "")
    assert expected in ended.out


def test_a_missing_extra_is_named(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the extra to install, for the command line and for the emulator."""
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


def test_a_terminal_shows_the_progress(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    """Requests, retries and the fallback are shown on standard error."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich assume a terminal
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
