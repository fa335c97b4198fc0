"""The command line: ``resilient-imagen``. Needs the ``cli`` extra; importing this does not."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process, and end it with the command's exit code."""
    usual = signal.getsignal(signal.SIGINT)
    try:
        if usual is signal.default_int_handler:
            # An import may swallow an exception, so Ctrl-C ends the process until a command runs.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        import rich
        import typer

        del rich, typer
        from resilient_imagen.cli.command_line import run

        run()
    except ModuleNotFoundError as error:
        if error.name not in {"rich", "typer"}:
            raise
        sys.exit("resilient-imagen: the command line needs pip install 'resilient-imagen[cli]'")
    except KeyboardInterrupt:  # between the command and the end of the process
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, usual)
