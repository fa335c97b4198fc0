"""Untrusted text on a terminal: prompts, file names, vendors' messages, recordings and Redis."""

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
    """Use the test's own directory."""
    monkeypatch.chdir(tmp_path)


def harmless(text: str) -> bool:
    """Return whether the text has no character that acts on a terminal."""
    return all(
        sign == "\n" or unicodedata.category(sign) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        for sign in text
    )


def assert_shown(ended: Ended, *, markup: bool = True) -> None:
    """Check that both outputs are harmless and that one contains the hostile text."""
    assert harmless(ended.out)
    assert harmless(ended.err)
    printed = (ended.out + ended.err).replace("\n", "")
    assert "\\x1b]0;owned" in printed
    assert not markup or MARKUP in printed


# -- printable text --------------------------------------------------------------------------------


@given(st.text())
def test_printable_text_has_no_control_character(text: str) -> None:
    """Control characters are escaped, and all other characters are kept."""
    shown = printable(text)
    assert harmless(shown.replace("\t", "").replace("\u200c", "").replace("\u200d", ""))
    assert not harmless(text) or shown == text
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ["狐", "नमस्ते\u200d", "👩\u200d🚀", "लोमड़ी", "a\u00a0b", "é"])
def test_text_of_any_language_is_kept(text: str) -> None:
    """Joiners, which Persian, Hindi and emoji need, are kept."""
    assert printable(text) == text


def test_a_long_line_is_shortened() -> None:
    """A long text becomes one line that states how much was cut."""
    assert one_line("a" * 5000) == "a" * 2000 + " ... (3000 more characters)"
    assert one_line("a\n\nb\r\nc") == "a b c"


def test_a_console_prints_markup_and_escapes_literally() -> None:
    """Strings, tables, live views and rich's text classes are printed literally."""
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
    """A mistake in a row is reported in one harmless line."""
    write([row])
    ended = cli(capsys, *COMMAND)
    assert ended.code == 2
    assert ended.complaint.startswith("prompts.jsonl: line 1: ")
    assert harmless(ended.err)


def test_a_file_name_cannot_reach_the_terminal(capsys: Capsys) -> None:
    """The name of a saved image is printed with its control characters escaped."""
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
    """A message shows an argument with its control characters escaped."""
    ended = cli(capsys, *arguments)
    assert ended.code == 2
    assert_shown(ended, markup=False)


def test_a_script_cannot_reach_the_terminal(capsys: Capsys) -> None:
    """The keys in a message about a script of faults are escaped."""
    Path("script.json").write_text(json.dumps({"google": {NASTY: 1}}))
    ended = cli(capsys, "emulate", "--script", "script.json")
    assert ended.code == 2
    assert_shown(ended)


# -- vendors, recordings, Redis -------------------------------------------------------------------


def test_a_vendors_message_cannot_reach_the_terminal(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    imagen_emulator: BackgroundEmulator,
) -> None:  # fmt: skip
    """It is escaped in the error of one image, and in a row's line and the summary of a file."""
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
    assert "denied" in many.err


def test_a_character_outside_the_outputs_encoding_is_escaped(tmp_path: Path) -> None:
    """Printing it as Latin-1 does not fail after the image was paid for."""
    ended = run(
        "generate", "a fox", "-o", "狐.jpg", "--emulator", "--resolution", "1K",
        cwd=tmp_path, env={"PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "saved     \\u72d0.jpg (" in ended.stdout


@pytest.mark.redis
def test_a_shared_record_cannot_reach_the_terminal(server: RedisServer, capsys: Capsys) -> None:
    """Records in Redis are printed with their control characters escaped."""
    nasty = f"\x1b]0;owned\x07\x1b[2J{MARKUP}"  # what the kit can send: ASCII
    until = str(int((time.time() + 30) * 1e6))
    address = Address.parse(server.url)
    for name in (f"google:{nasty}", f"google:{MARKUP}", nasty):
        circuit = address.key("circuit", name)
        server.ask("ZADD", address.key("topics", "fleet"), "1", name)
        server.ask(
            "HSET", circuit, "state", "open", "till", until, "cause", nasty, "summary", nasty
        )
    server.ask("HSET", address.key("pace", nasty), "next", until)
    worker = f"host{nasty}/1/2"
    for member in (worker, "host/1/2"):
        server.ask("ZADD", address.key("seen", "fleet"), until, member)
        server.ask("HSET", address.key("members", "fleet"), member, json.dumps({"version": nasty}))
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
    """A value that is not a number does not fail the command."""
    address = Address.parse(server.url)
    key = address.key("circuit", "google:pro")
    server.ask("ZADD", address.key("topics", "fleet"), "1", "google:pro")
    server.ask("HSET", key, "state", "open", "till", value)
    ended = cli(capsys, "status", "--redis-url", server.url)
    assert ended.code == 0
    assert "google:pro" in ended.out
