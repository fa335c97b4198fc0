"""The command line: ``resilient-imagen``. Needs the ``cli`` extra; importing this does not."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["allow_cleanup", "main"]


def main() -> None:
    """Run the command named on the command line; ends the process with its exit code."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        _run()
    except KeyboardInterrupt:  # between the command and its end
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, usual)


def allow_cleanup() -> None:
    """From here on Ctrl-C is an exception: a command has things to put in order, and to say."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    """While modules are imported, which may swallow an exception or turn it into another one."""
    os._exit(130)


def _run() -> None:
    try:
        import rich
        import typer
    except ImportError:
        sys.exit("resilient-imagen: the command line needs pip install 'resilient-imagen[cli]'")
    del rich, typer
    from resilient_imagen.cli.command_line import run

    run()
