"""The command line: ``resilient-imagen``. Needs the ``cli`` extra; importing this does not."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command named on the command line; ends the process with its exit code."""
    try:
        _run()
    except KeyboardInterrupt:  # while modules were still being imported
        sys.exit(130)


def _run() -> None:
    try:
        import rich
        import typer
    except ImportError:
        sys.exit("resilient-imagen: the command line needs pip install 'resilient-imagen[cli]'")
    del rich, typer
    from resilient_imagen.cli.app import run

    run()
