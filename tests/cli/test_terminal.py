"""Untrusted text on the terminal: prompts, file names, vendors' words, recordings and Redis."""

from __future__ import annotations

import io
import json
import time
import unicodedata
from pathlib import Path

import pytest
from batch_kit import COMMAND, prepare, write
from cli_kit import Ended, cli, run
from hypothesis import given
from hypothesis import strategies as st
from redis_kit import RedisServer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from resilient_imagen.cli.terminal import Console, one_line, printable
from resilient_imagen.distributed import Address
from resilient_imagen.emulator import BackgroundEmulator, faults

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\x7f"
"""Sets the title, clears the screen, colours by a C1 control, reverses the line."""
MARKUP = "[red][link=https://evil.example]here[/link]"
NASTY = ESCAPES + MARKUP


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a directory land in the test's own."""
    monkeypatch.chdir(tmp_path)


def harmless(text: str) -> bool:
    """Whether nothing in it acts on a terminal."""
    return all(
        sign == "\n" or unicodedata.category(sign) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        for sign in text
    )


def assert_shown(ended: Ended, *, markup: bool = True) -> None:
    """Both outputs are harmless, and the nasty text is visible in one of them."""
    assert harmless(ended.out)
    assert harmless(ended.err)
    told = (ended.out + ended.err).replace("\n", "")
    assert "\\x1b]0;owned" in told
    assert not markup or MARKUP in told


# -- the one place --------------------------------------------------------------------------------


@given(st.text())
def test_printable_text_has_no_control_character(text: str) -> None:
    """Every other character stays, in its place."""
    shown = printable(text)
    assert harmless(shown.replace("\t", "").replace("\u200c", "").replace("\u200d", ""))
    assert not harmless(text) or shown == text
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ["狐", "नमस्ते\u200d", "👩\u200d🚀", "लोमड़ी", "a\u00a0b", "é"])
def test_text_of_any_language_is_kept(text: str) -> None:
    """The joiners that spelling needs are no danger."""
    assert printable(text) == text


def test_a_long_line_is_cut_and_says_so() -> None:
    """A vendor's page of a megabyte does not fill the terminal."""
    assert one_line("a" * 5000) == "a" * 2000 + " ... (3000 more characters)"
    assert one_line("a\n\nb\r\nc") == "a b c"


def test_a_console_takes_no_markup_and_no_escapes() -> None:
    """Strings, tables, live views and rich's own text classes all come out literally."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=300)
    table = Table(NASTY, title=NASTY, caption=NASTY)
    table.add_row(NASTY)
    table.add_row(Text(NASTY, style="red"))
    with Live(get_renderable=lambda: table, console=console):
        console.print(NASTY)
    written = out.getvalue()
    for control in ("\x1b]", "\x07", "\x1b[2J", "\x9b", "\u202e", "\x7f"):
        assert control not in written
    assert MARKUP in written
    plain = io.StringIO()
    Console(file=plain, width=300).print(table)
    assert harmless(plain.getvalue())
    assert len({len(line) for line in plain.getvalue().splitlines()[1:-1]}) == 1  # aligned


# -- prompts and file names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", NASTY[:39]: 1},
        {"prompt": "a", "id": NASTY},
        {"prompt": "a", "references": [NASTY]},
        {"prompt": "a", "aspect_ratio": NASTY},
    ],
    ids=["key", "id", "reference", "aspect ratio"],
)
def test_a_row_of_a_file_cannot_reach_the_terminal(row: dict[str, object], capsys: Capsys) -> None:
    """A mistake in it is named in one harmless line."""
    write([row])
    ended = cli(capsys, *COMMAND)
    assert ended.code == 2
    assert ended.complaint.startswith("prompts.jsonl: line 1: ")
    assert harmless(ended.err)


def test_a_file_name_cannot_reach_the_terminal(capsys: Capsys) -> None:
    """The name under which a picture is saved is shown with its control characters escaped."""
    name = f"fox{ESCAPES}\n.jpg"
    ended = cli(
        capsys, "generate", "a fox", "-o", name, "--emulator", "--resolution", "1K",
        "--aspect", "1:1",
    )  # fmt: skip
    assert ended.code == 0
    assert Path(name).is_file()
    assert ended.out.count("\n") == 8
    assert_shown(ended, markup=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "a fox", "--ref", NASTY),
        ("generate", "a fox", "-o", NASTY.replace("/", "") + "/fox"),
        ("generate", "--from", NASTY, "-o", "out"),
        ("generate", "a fox", f"--{NASTY}"),
        ("emulate", "--script", NASTY),
        ("demo", "-o", NASTY),
        ("cost", NASTY),
        ("tune", NASTY),
        ("tune", "x", "--html", NASTY),
        ("cost", "x", "--save", NASTY),
        (NASTY,),
    ],
    ids=lambda arguments: " ".join(arguments)[:16],
)
def test_an_argument_cannot_reach_the_terminal(arguments: tuple[str, ...], capsys: Capsys) -> None:
    """It may be a name that was completed or pasted: the complaint shows it harmlessly."""
    ended = cli(capsys, *arguments)
    assert ended.code == 2
    assert_shown(ended, markup=False)


def test_a_script_cannot_reach_the_terminal(capsys: Capsys) -> None:
    """The place of a mistake in it is named by its own keys."""
    Path("script.json").write_text(json.dumps({"google": {NASTY: 1}}))
    ended = cli(capsys, "emulate", "--script", "script.json")
    assert ended.code == 2
    assert_shown(ended)


# -- vendors, recordings, Redis -------------------------------------------------------------------


def test_a_vendors_words_cannot_reach_the_terminal(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    imagen_emulator: BackgroundEmulator,
) -> None:  # fmt: skip
    """Neither in a single call's error nor in a batch's progress and summary."""
    prepare(tmp_path, monkeypatch, imagen_emulator)
    refusal = {"error": {"code": 403, "message": f"denied {NASTY}", "status": "PERMISSION_DENIED"}}
    for vendor in imagen_emulator.app.vendors:
        vendor.set(faults.status(403, body=refusal))
    single = cli(capsys, "generate", "a fox")
    assert single.code == 1
    assert harmless(single.err)
    assert "denied" in single.err
    write([{"prompt": "a fox"}])
    many = cli(capsys, *COMMAND)
    assert many.code == 1
    assert harmless(many.out + many.err)
    assert "denied" in many.out


def test_an_output_that_lacks_a_character_shows_its_code(tmp_path: Path) -> None:
    """An encoding such as Latin-1 is no reason for a failure after the picture was paid for."""
    ended = run(
        "generate", "a fox", "-o", "狐.jpg", "--emulator", "--resolution", "1K",
        cwd=tmp_path, env={"PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "saved     \\u72d0.jpg (" in ended.stdout


@pytest.mark.redis
def test_a_shared_record_cannot_reach_the_terminal(server: RedisServer, capsys: Capsys) -> None:
    """A stranger who can write to Redis writes no escapes to an operator's terminal."""
    nasty = f"\x1b]0;owned\x07\x1b[2J{MARKUP}"  # what the kit can send: ASCII
    until = str(int((time.time() + 30) * 1e6))
    for name in (f"google:{nasty}", f"google:{MARKUP}"):
        circuit = Address.parse(server.url).key("circuit", name)
        server.ask("HSET", circuit, "state", "open", "till", until, "cause", nasty, "brief", nasty)
    server.ask("HSET", Address.parse(server.url).key("pace", nasty), "next", until)
    ended = cli(capsys, "status", "--redis-url", server.url, "--json")
    shown = cli(capsys, "status", "--redis-url", server.url)
    assert (ended.code, shown.code) == (0, 0)
    assert [route["route"] for route in json.loads(ended.out)["routes"]] == [f"google:{MARKUP}"]
    assert "\x1b" not in ended.out + shown.out
    assert "owned" not in ended.out + shown.out


@pytest.mark.redis
@pytest.mark.parametrize("value", ["soon", "9" * 400, "9" * 5000, ""])
def test_a_damaged_number_of_a_record_is_read_as_its_default(
    value: str, server: RedisServer, capsys: Capsys
) -> None:
    """A number that is none is no internal error of the command."""
    key = Address.parse(server.url).key("circuit", "google:pro")
    server.ask("HSET", key, "state", "open", "till", value)
    ended = cli(capsys, "status", "--redis-url", server.url)
    assert ended.code == 0
    assert "google:pro" in ended.out
