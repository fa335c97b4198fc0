"""Usage errors with suggestions, and shell completion."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from cli_kit import cli, environment, python

from resilient_imagen.cli.command_line import COMMANDS
from resilient_imagen.emulator import BackgroundEmulator

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the test's own directory."""
    monkeypatch.chdir(tmp_path)


def test_the_package_is_a_command(tmp_path: Path) -> None:
    """``python -m resilient_imagen`` does what the script does."""
    done = python("-m", "resilient_imagen", "--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("resilient-imagen ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("genrate", "No such command 'genrate'; did you mean generate? See --help."),
        ("Tune calls.jsonl", "No such command 'Tune'; did you mean tune? See --help."),
        ("paint", f"No such command 'paint'; use one of {', '.join(COMMANDS)}. See --help."),
        ("--versoin", "No such option: --versoin; did you mean --version? See --help."),
        (
            "generate x --resolutoin 2K",
            "No such option: --resolutoin; did you mean --resolution? See --help.",
        ),
        ("generate x --colour 9", "No such option: --colour. See --help."),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(arguments: str, complaint: str, capsys: Capsys) -> None:
    """The message suggests near commands and options, or lists all commands."""
    ended = cli(capsys, *arguments.split())
    assert (ended.code, ended.complaint) == (2, complaint)


@pytest.mark.parametrize(
    "arguments",
    [
        "generate x --deadline soon",
        "generate x --resolution 3K",
        "emulate --port x",
        "emulate --port 99999999",
        "tune --settings x calls.jsonl",
        "tune --workers 1.5 calls.jsonl",
    ],
)
def test_a_wrong_value_is_described_without_phrases_of_pydantic(
    arguments: str, capsys: Capsys
) -> None:
    """The line has the option and the value."""
    ended = cli(capsys, *arguments.split())
    assert ended.code == 2
    assert ended.complaint.startswith("Invalid value for '--")
    assert ended.complaint.endswith(". See --help.")
    assert not any(
        phrase in ended.complaint for phrase in ("Input should", "Value error", "..", "parse")
    )


def test_a_wrong_variable_is_described_without_phrases_of_pydantic(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the value and the allowed ones."""
    monkeypatch.setenv("IMAGE_GEN_FIT", "zoom")
    ended = cli(capsys, "generate", "a fox", "--emulator")
    assert (ended.code, ended.complaint) == (
        2,
        "IMAGE_GEN_FIT: must be crop, pad, none or exact, not 'zoom'",
    )


# -- models ---------------------------------------------------------------------------------------


def test_a_misspelt_model_gets_a_suggestion(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """Nothing is sent, because the fallback would answer and be paid."""
    ended = cli(capsys, "generate", "a fox", "--model", "Gemini-3-pro-img")
    assert ended.code == 2
    assert ended.complaint == (
        "--model Gemini-3-pro-img: no such model; did you mean gemini-3-pro-image or "
        "gemini-3.1-flash-image? A model that this version does not know can be used once "
        "IMAGE_GEN_ROUTES names it."
    )
    assert imagen_emulator.google.requests == imagen_emulator.openai.requests == ()


def test_without_a_near_model_those_of_the_first_route_are_listed(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """The message has models of the first route's vendor, and no key that was typed instead."""
    key = "sk-" + "1aB" * 15
    ended = cli(capsys, "generate", "a fox", "--model", key)
    assert ended.code == 2
    assert "use one of gemini-3-pro-image, " in ended.complaint
    assert "gpt-" not in ended.complaint
    assert key[3:] not in ended.complaint
    assert imagen_emulator.google.requests == ()


def test_an_unknown_model_of_a_batch_is_refused(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """It is refused before the directory is created."""
    Path("prompts.jsonl").write_text('{"prompt": "a fox"}\n')
    ended = cli(
        capsys, "generate", "--from", "prompts.jsonl", "-o", "made", "--model", "gemini-4-proo"
    )
    assert ended.code == 2
    assert ended.complaint.startswith("--model gemini-4-proo: no such model; ")
    assert not Path("made").exists()
    assert imagen_emulator.google.requests == ()


def test_an_unknown_model_of_a_route_is_requested(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    """A new model that a route names is requested, although the model table lacks it."""
    monkeypatch.setenv("IMAGE_GEN_ROUTES", "google:gemini-3-pro-image,google:gemini-9-pro-image")
    ended = cli(capsys, "generate", "a fox", "--model", "gemini-9-pro-image", "-o", "fox")
    assert "404 NOT_FOUND" in ended.err
    assert [seen.model for seen in imagen_emulator.google.requests] == ["gemini-9-pro-image"]


# -- completion -----------------------------------------------------------------------------------

BASH = shutil.which("bash")

COMPLETED = r"""
set -eu
eval "$(resilient-imagen --show-completion bash)"
complete -p resilient-imagen >/dev/null
COMP_WORDS=({words})
COMP_CWORD=$(({count} - 1))
COMPREPLY=()
function=$(complete -p resilient-imagen | sed 's/.*-F \([^ ]*\).*/\1/')
"$function" resilient-imagen
printf '%s\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["resilient-imagen", ""], list(COMMANDS)),
        (["resilient-imagen", "ge"], ["generate"]),
        (["resilient-imagen", "generate", "--reso"], ["--resolution"]),
        (["resilient-imagen", "generate", "--resolution", ""], ["1K", "2K", "4K"]),
        (["resilient-imagen", "generate", "--model", "gpt-image-2.6-f"], ["gpt-image-2.6-flare"]),
    ],
    ids=lambda value: " ".join(value[1:]) if value[0] == "resilient-imagen" else "",
)
def test_bash_completes(words: list[str], expected: list[str], tmp_path: Path) -> None:
    """A real bash runs the script that ``--show-completion`` prints."""
    assert BASH is not None
    command = tmp_path / "resilient-imagen"
    command.write_text(f'#!{BASH}\nexec "{sys.executable}" -m resilient_imagen "$@"\n')
    command.chmod(0o755)
    quoted = " ".join(f"'{word}'" for word in words)
    env = environment()
    done = subprocess.run(
        [BASH, "--norc", "-c", COMPLETED.format(words=quoted, count=len(words))],
        cwd=tmp_path,
        env={**env, "PATH": f"{tmp_path}:{env['PATH']}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_help_wraps_paragraphs_at_the_terminals_width(command: str, capsys: Capsys) -> None:
    """A line of a docstring does not end a line of the help."""
    module = import_module(f"resilient_imagen.cli.{command}")
    shown = " ".join(cli(capsys, command, "--help").out.split())
    docstring = inspect.getdoc(getattr(module, command)) or ""
    for paragraph in docstring.split("\n\n"):
        assert re.sub(r"\[/?\w+\]", "", " ".join(paragraph.split())) in shown
    wide = [line for line in cli(capsys, command, "--help").out.splitlines() if len(line) > 80]
    assert wide or len(docstring) < 200
