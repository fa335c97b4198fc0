"""An event loop whose time is computed, not waited for.

Sleeping for an hour takes no time: when nothing is ready to run, the clock jumps to the next timer.
Time stands still while work in a thread is pending, so that thread pools and sockets with a real
answer on the way behave as on an ordinary loop.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

__all__ = ["VirtualTimeLoop", "run_virtual"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class _JumpingSelector(selectors.BaseSelector):
    """Asks the real selector without waiting; if it has nothing, lets the loop's clock jump."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.loop: VirtualTimeLoop | None = None

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or timeout == 0 or self.loop is None:
            return ready
        if self.loop.threads_pending:
            return self._real.select(None)  # a finished thread wakes us through the loop's own pipe
        if timeout is None:
            message = "every task waits for something that nobody will do: no timer, no thread"
            raise RuntimeError(message)
        self.loop.advance(timeout)
        return []

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A real asyncio loop on virtual time, in seconds from 0.

    Raises:
        RuntimeError: From the running call, when every task waits and neither a timer nor a
            thread is left that could wake one.
    """

    def __init__(self) -> None:
        selector = _JumpingSelector()
        self._virtual_now = 0.0
        self.threads_pending = 0
        super().__init__(selector)
        selector.loop = self

    def time(self) -> float:
        """Seconds of virtual time since the loop was made."""
        return self._virtual_now

    def advance(self, seconds: float) -> None:
        """Move the clock on; timers that become due run in the loop's next round."""
        target = self._virtual_now + seconds
        # A step too small to change a large float would stop the clock for ever.
        self._virtual_now = max(target, self._virtual_now + self._clock_step())

    def _clock_step(self) -> float:
        return max(1e-9, abs(self._virtual_now) * 1e-15)

    def run_in_executor(
        self, executor: Any, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """As usual; virtual time stands still until the thread is done."""
        future = super().run_in_executor(executor, func, *args)
        self.threads_pending += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _future: asyncio.Future[Any]) -> None:
        self.threads_pending -= 1


def run_virtual(main: Coroutine[Any, Any, _T]) -> _T:
    """Run ``main`` on a fresh VirtualTimeLoop, as asyncio.run would, and return its result."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
