"""Ctrl-C before anything has begun: an exit code, and not a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_kit import python

INTERRUPTED = """
import importlib.abc, os, signal, sys

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10):
        pass  # where the handler runs

class Fading:
    def __del__(self):
        interrupt()  # an exception in here is shown, and lost

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            {how}()

sys.meta_path.insert(0, Finder())
sys.argv = ["resilient-imagen", "generate", "a fox", "--emulator"]
from resilient_imagen.cli import main
main()
"""


@pytest.mark.parametrize(
    "name", ["rich", "typer", "resilient_imagen.cli.command_line", "resilient_imagen.cli.generate"]
)
@pytest.mark.parametrize("how", ["interrupt", "Fading"])
def test_ctrl_c_while_modules_are_imported(name: str, how: str, tmp_path: Path) -> None:
    """Whatever an import would make of an exception in its midst."""
    ended = python("-c", INTERRUPTED.format(name=name, how=how), cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize(
    "name", ["resilient_imagen.cli.generate_command", "resilient_imagen.client", "google.genai"]
)
def test_ctrl_c_while_a_command_begins(name: str, tmp_path: Path) -> None:
    """Then there are things to put in order, and it says so."""
    ended = python("-c", INTERRUPTED.format(name=name, how="interrupt"), cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "resilient-imagen: stopped\n"


def test_the_way_to_the_first_line_is_short(tmp_path: Path) -> None:
    """Before that, Ctrl-C still is a traceback: nothing that takes long is imported there."""
    code = (
        "import sys\n"
        "from resilient_imagen.cli import main\n"
        "print([name for name in ('asyncio', 'pathlib', 'ssl') if name in sys.modules])"
    )
    assert python("-c", code, cwd=tmp_path).stdout == "[]\n"
