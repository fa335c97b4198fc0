"""How a batch is asked to stop: by Ctrl-C, by a supervisor, or by its terminal going away."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from resilient_imagen.cli.command_errors import warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilient_imagen.cli.batch import Batch

__all__ = ["ShutdownSignals"]

_SIGNALS: Final = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}
"""The last of them is not known everywhere."""
_REPEATED: Final = frozenset({"SIGINT", "SIGTERM"})
"""Mean it when they come again; a closing terminal sends its own twice."""


class ShutdownSignals:
    """Lets what was sent come in; the same signal again waits for nothing."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._seen: list[str] = []

    @property
    def code(self) -> int | None:
        """The exit code, as shells count it; None when nobody asked."""
        return 128 + signal.Signals[self._seen[0]] if self._seen else None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen while this lasts."""
        loop = asyncio.get_running_loop()
        known = [name for name in _SIGNALS if _is_wanted(name)]
        added = []
        try:
            for name in known:
                loop.add_signal_handler(signal.Signals[name], self._on_signal, name)
                added.append(name)
        except (NotImplementedError, RuntimeError):  # Windows, or not the main thread
            pass
        try:
            yield
        finally:
            for name in added:
                loop.remove_signal_handler(signal.Signals[name])

    def _on_signal(self, name: str) -> None:
        again = name in self._seen
        if not again:
            self._seen.append(name)
            drop = f"; {_SIGNALS[name]} again drops it" if name in _REPEATED else ""
            warn(f"finishing what was sent, as it is paid for{drop}")
        self._batch.stop(_SIGNALS[name], at_once=again and name in _REPEATED)


def _is_wanted(name: str) -> bool:
    """Whether there is such a signal, and nobody (nohup) had it ignored."""
    number = getattr(signal, name, None)
    return number is not None and not (
        name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN
    )
