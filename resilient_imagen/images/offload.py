"""Work on pictures happens here, in a few threads of our own, so that the event loop stays free.

A thread cannot be stopped: when its caller is cancelled, the caller goes at once, the work begun is
finished and thrown away, work not begun is dropped. The pool is small, so that a burst of cancelled
calls can neither pile up threads nor decoded pictures, and it is ours, so that it neither starves
the application's default executor nor waits behind it.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["off_loop"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# More would not be faster (Pillow keeps a core busy) and each may hold one decoded picture.
_MAX_THREADS: Final = 4


async def off_loop(work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
    """Run ``work`` in one of our threads; must not be called from within such work.

    Raises:
        Exception: Whatever ``work`` raises.
    """
    return await asyncio.get_running_loop().run_in_executor(_pool(), work, *args)


@cache
def _pool() -> ThreadPoolExecutor:
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    return ThreadPoolExecutor(threads, thread_name_prefix="resilient-imagen-images")


# A forked child inherits the pool without its threads: work given to it would wait for ever.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_pool.cache_clear)
