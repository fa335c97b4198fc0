"""What Ctrl-C does to a command: end it at once, until it has things to put in order."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["allow_cleanup", "end_at_once"]


@contextmanager
def end_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once in this block, until `allow_cleanup` is called."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def allow_cleanup() -> None:
    """Make Ctrl-C an exception from here on: a command has things to put in order, and to say."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    """End the process: while modules are imported, an exception may be swallowed or replaced."""
    os._exit(130)
