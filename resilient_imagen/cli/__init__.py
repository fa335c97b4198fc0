"""The command line: ``resilient-imagen``. Needs the ``cli`` extra; importing this does not."""

from __future__ import annotations

import sys

from resilient_imagen.cli.interrupts import end_at_once

__all__ = ["main"]


def main() -> None:
    """Run the command named on the command line; ends the process with its exit code."""
    try:
        with end_at_once():
            _run()
    except KeyboardInterrupt:  # between the command and its end
        sys.exit(130)


def _run() -> None:
    try:
        import rich
        import typer
    except ImportError:
        sys.exit("resilient-imagen: the command line needs pip install 'resilient-imagen[cli]'")
    del rich, typer
    from resilient_imagen.cli.command_line import run

    run()
