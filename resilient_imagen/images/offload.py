"""Work on pictures happens here, in a few threads of our own, so that the event loop stays free.

A thread cannot be stopped: when its caller is cancelled, the caller goes at once, the work begun is
finished and thrown away, work not begun is dropped. The pool is small, so that a burst of cancelled
calls can neither pile up threads nor decoded pictures, and it is ours, so that it neither starves
the application's default executor nor waits behind it.

Decoded pictures leave holes in the heap that glibc keeps: after a burst, and when nothing is left
to do, they are given back.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["give_back", "look_up", "much_was_used", "off_loop"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# More would not be faster (Pillow keeps a core busy) and each may hold one decoded picture.
_MAX_THREADS: Final = 4
_MAX_LOOKUPS: Final = 8


async def off_loop(work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
    """Run ``work`` in one of our threads; must not be called from within such work.

    Raises:
        Exception: Whatever ``work`` raises.
    """
    pool = _pool()
    return await asyncio.get_running_loop().run_in_executor(pool.threads, pool.run, work, *args)


async def look_up(work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
    """Run what waits for the network in threads apart: it may hang for long, and costs nothing.

    Raises:
        Exception: Whatever ``work`` raises.
    """
    return await asyncio.get_running_loop().run_in_executor(_lookups(), work, *args)


def much_was_used() -> None:
    """Say, from within work, that a picture was decoded: worth giving memory back afterwards."""
    _pool().much_was_used = True


def give_back() -> None:
    """Return free memory to the system, where the C library can: glibc keeps it otherwise.

    Takes some milliseconds for each hundred megabytes, with the interpreter lock let go.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


class _Pool:
    """The threads, and how many of them are at work."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(
            min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="resilient-imagen-images"
        )
        self.much_was_used = False
        self._working = 0
        self._lock = threading.Lock()

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
            give_back()


@cache
def _pool() -> _Pool:
    return _Pool()


@cache
def _lookups() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MAX_LOOKUPS, thread_name_prefix="resilient-imagen-lookups")


@cache
def _malloc_trim() -> Callable[[int], Any] | None:
    import ctypes  # some milliseconds that not everyone needs to wait

    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows
        return None


def _forget() -> None:
    _pool.cache_clear()
    _lookups.cache_clear()


# A forked child inherits the pools without their threads: work given to one would wait for ever.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
