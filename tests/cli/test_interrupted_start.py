"""Ctrl-C while the command line is being imported."""

from __future__ import annotations

import signal
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
    """The signal ends the process without a message, which shells report as 130."""
    ended = python("-c", INTERRUPTED.format(name=name, how=how), cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.ci
@pytest.mark.parametrize(
    "name", ["resilient_imagen.cli.generate_one", "resilient_imagen.client", "google.genai"]
)
def test_ctrl_c_while_a_command_begins(name: str, tmp_path: Path) -> None:
    """A command that has begun cleans up and prints one line."""
    ended = python("-c", INTERRUPTED.format(name=name, how="interrupt"), cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "resilient-imagen: stopped\n"


def test_slow_modules_are_imported_after_the_signal_handler_is_set(tmp_path: Path) -> None:
    """Before the handler is set, only fast modules are imported."""
    code = (
        "import sys\n"
        "from resilient_imagen.cli import main\n"
        "print([name for name in ('asyncio', 'pathlib', 'ssl') if name in sys.modules])"
    )
    assert python("-c", code, cwd=tmp_path).stdout == "[]\n"
