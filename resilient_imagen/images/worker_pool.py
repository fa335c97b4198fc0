"""Worker pools: a few threads for image processing, so that it does not block the event loop.

A thread cannot be stopped: when a caller is cancelled, work that has begun is completed and
discarded, and work that has not begun is dropped. The pools are small, so that a burst of cancelled
calls cannot accumulate threads or decoded images, and separate from the application's default
executor, so that neither waits for the other.

References have separate pools, because they are untrusted and results must not wait for them. File
reads have a pool, too, because they may hang. One call may use only a share of these pools and of
name look-ups.

Decoded images fragment the heap, and glibc keeps the free memory. After a burst, when a pool is
idle, it is returned to the system.
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

# More would not be faster (Pillow uses a whole core), and each may hold a decoded image.
_MAX_THREADS: Final = 4
# Threads that wait for I/O and use no CPU.
_MAX_WAITING: Final = 32
_WAITING_OF_ONE_CALL: Final = 4


class Pool(Enum):
    """A kind of work with its own threads; the value is the prefix of the threads' names."""

    RESULTS = "resilient-imagen-images"
    """Work that a result waits for."""
    REFERENCES = "resilient-imagen-references"
    """Processing of reference images."""
    LARGE = "resilient-imagen-large-references"
    """Processing of references that need much memory: a single thread, so that only one is decoded
    at a time, and smaller ones do not wait for it."""
    FILES = "resilient-imagen-files"
    """File reads, which may hang for long, for example on a network file system."""
    NAMES = "resilient-imagen-names"
    """Look-ups of host names; their threads are those of ``dns.HostResolver``."""


_shares: ContextVar[dict[Pool, asyncio.Semaphore] | None] = ContextVar(
    "resilient_imagen_shares", default=None
)


def pool_for(reference: bytes) -> Pool:
    """Return the pool for decoding a reference, by the size in its header."""
    size = pixel_size(reference)
    small = size is not None and size[0] * size[1] <= LARGE_PIXELS
    return Pool.REFERENCES if small else Pool.LARGE


async def off_loop(work: Callable[[*_Ts], _T], *args: *_Ts, pool: Pool = Pool.RESULTS) -> _T:
    """Run ``work`` in a thread of ``pool``; must not be called from such work itself.

    Raises:
        Exception: Any exception that ``work`` raises.
    """
    workers = _pool(pool)
    loop = asyncio.get_running_loop()
    async with share_of(pool):
        return await loop.run_in_executor(workers.threads, workers.run, work, *args)


@contextmanager
def shares_of_one_call() -> Iterator[None]:
    """Limit the block, and tasks that it starts, to one call's share of each pool."""
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
    """Return a context that occupies one place of the current call's share of a pool, if any."""
    return (_shares.get() or {}).get(pool) or nullcontext()


def mark_large_allocation() -> None:
    """Note, inside work, that an image was decoded, so that memory is returned afterwards."""
    pool: _Pool | None = getattr(_here, "pool", None)
    if pool is not None:
        pool.heap_is_large = True


def trim_heap() -> None:
    """Return free memory to the system if the C library supports it; glibc would keep it.

    Takes some milliseconds for each hundred megabytes, without the interpreter lock.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


class _Pool:
    """A thread pool that counts its running work, and trims the heap when it is idle."""

    def __init__(self, kind: Pool) -> None:
        most = {Pool.LARGE: 1, Pool.FILES: _MAX_WAITING}.get(kind, _threads())
        self.threads = ThreadPoolExecutor(most, kind.value, initializer=self._enter)
        self.heap_is_large = False
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
            if self.heap_is_large and not self._working:
                self._schedule_trim()

    def _schedule_trim(self) -> None:
        """Trim the heap later: the caller waits, and arguments and result are still in memory."""
        with suppress(RuntimeError):  # the interpreter is shutting down
            self.threads.submit(self._trim)

    def _trim(self) -> None:
        with self._lock:
            idle = self.heap_is_large and not self._working
            if idle:
                self.heap_is_large = False
        if idle:
            trim_heap()


_here = threading.local()
"""Thread-local; ``pool`` is the pool that the thread belongs to."""


def _threads() -> int:
    return min(_MAX_THREADS, os.cpu_count() or 1)


@cache
def _pool(kind: Pool) -> _Pool:
    return _Pool(kind)


@cache
def _malloc_trim() -> Callable[[int], Any] | None:
    import ctypes  # imported on first use: it takes some milliseconds

    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows
        return None


def _forget() -> None:
    _pool.cache_clear()


# A forked child inherits the pools without their threads, so submitted work would never run.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
