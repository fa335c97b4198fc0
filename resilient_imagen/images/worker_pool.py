"""Work on pictures happens here, in a few threads of our own, so that the event loop stays free.

A thread cannot be stopped: when its caller is cancelled, the caller goes at once, the work begun is
finished and thrown away, work not begun is dropped. The pools are small, so that a burst of
cancelled calls can neither pile up threads nor decoded pictures, and they are ours, so that they
neither starve the application's default executor nor wait behind it.

References have pools of their own: a stranger may choose them, and results must not wait for them.
So have reads of files, which may hang. One call gets only a share of these pools, and of name
look-ups.

Decoded pictures leave holes in the heap that glibc keeps: after a burst, and when nothing is left
to do, they are given back.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple

from resilient_imagen.images.inspect import pixel_size
from resilient_imagen.images.limits import LARGE_PIXELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Pool",
    "mark_large_allocation",
    "off_loop",
    "pool_for",
    "share_of",
    "shares_of_one_call",
    "trim_heap",
]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# More would not be faster (Pillow keeps a core busy) and each may hold one decoded picture.
_MAX_THREADS: Final = 4
# They wait and cost nothing.
_MAX_WAITING: Final = 32
_WAITING_OF_ONE_CALL: Final = 4


class Pool(Enum):
    """Threads for one kind of work, by the name they have."""

    RESULTS = "resilient-imagen-images"
    """Whatever a result waits for."""
    REFERENCES = "resilient-imagen-references"
    """Pictures of callers."""
    LARGE = "resilient-imagen-large-references"
    """Pictures of callers that take much memory: one thread, so that there is one of them at a
    time, and others do not wait for it."""
    FILES = "resilient-imagen-files"
    """Reads of files, which may hang for long: on a network's file system, for example."""
    NAMES = "resilient-imagen-names"
    """Look-ups of host names; their threads are those of ``dns.HostResolver``."""


_shares: ContextVar[dict[Pool, asyncio.Semaphore] | None] = ContextVar(
    "resilient_imagen_shares", default=None
)


def pool_for(reference: bytes) -> Pool:
    """Choose the pool for decoding a caller's picture, by the size its header tells."""
    size = pixel_size(reference)
    small = size is not None and size[0] * size[1] <= LARGE_PIXELS
    return Pool.REFERENCES if small else Pool.LARGE


async def off_loop(work: Callable[[*_Ts], _T], *args: *_Ts, pool: Pool = Pool.RESULTS) -> _T:
    """Run ``work`` in one of our threads; must not be called from within such work.

    Raises:
        Exception: Whatever ``work`` raises.
    """
    ours = _pool(pool)
    async with share_of(pool):
        return await asyncio.get_running_loop().run_in_executor(ours.threads, ours.run, work, *args)


@contextmanager
def shares_of_one_call() -> Iterator[None]:
    """Let everything within, also in tasks begun there, have one share of each pool."""
    shares = {
        Pool.REFERENCES: _threads(),
        Pool.LARGE: 1,
        Pool.FILES: _WAITING_OF_ONE_CALL,
        Pool.NAMES: _WAITING_OF_ONE_CALL,
    }
    token = _shares.set({pool: asyncio.Semaphore(most) for pool, most in shares.items()})
    try:
        yield
    finally:
        _shares.reset(token)


def share_of(pool: Pool) -> AbstractAsyncContextManager[None]:
    """Return what holds one place of the current call's share of a pool, if it has one."""
    return (_shares.get() or {}).get(pool) or nullcontext()


def mark_large_allocation() -> None:
    """Say, from within work, that a picture was decoded: worth giving memory back afterwards."""
    pool: _Pool | None = getattr(_here, "pool", None)
    if pool is not None:
        pool.much_was_used = True


def trim_heap() -> None:
    """Return free memory to the system, where the C library can: glibc keeps it otherwise.

    Takes some milliseconds for each hundred megabytes, with the interpreter lock let go.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


class _Pool:
    """Threads, and how many of them are at work."""

    def __init__(self, kind: Pool) -> None:
        most = {Pool.LARGE: 1, Pool.FILES: _MAX_WAITING}.get(kind, _threads())
        self.threads = ThreadPoolExecutor(most, kind.value, initializer=self._enter)
        self.much_was_used = False
        self._working = 0
        self._lock = threading.Lock()

    def _enter(self) -> None:
        _here.pool = self

    def run(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        with self._lock:
            self._working += 1
        try:
            return work(*args)
        finally:
            with self._lock:
                self._working -= 1
            if self.much_was_used and not self._working:
                self._tidy_up_later()

    def _tidy_up_later(self) -> None:
        """Not now: the caller waits, and what it gave and gets is still held."""
        with suppress(RuntimeError):  # the interpreter is shutting down
            self.threads.submit(self._tidy_up)

    def _tidy_up(self) -> None:
        with self._lock:
            idle = self.much_was_used and not self._working
            if idle:
                self.much_was_used = False
        if idle:
            trim_heap()


_here = threading.local()
"""Of a thread: the pool it belongs to."""


def _threads() -> int:
    return min(_MAX_THREADS, os.cpu_count() or 1)


@cache
def _pool(kind: Pool) -> _Pool:
    return _Pool(kind)


@cache
def _malloc_trim() -> Callable[[int], Any] | None:
    import ctypes  # some milliseconds that not everyone needs to wait

    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows
        return None


def _forget() -> None:
    _pool.cache_clear()


# A forked child inherits the pools without their threads: work given to one would wait for ever.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
