"""Host name resolution in a few daemon threads, separate from all other thread pools.

The system's resolver blocks for up to forty seconds if the name server is down, and cannot be
interrupted. In the event loop's default executor it would use up the application's threads, and in
any executor of the standard library it would keep the interpreter from exiting.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["HostResolver", "alternating"]

_STALE_AFTER: Final = 1.8
"""Seconds without an answer after which stale addresses are used (RFC 8767, section 5)."""
_STALE_FOR: Final = 86_400.0
"""Seconds for which stale addresses may be used (RFC 8767 allows one to three days)."""
_GIVEN_UP: Final = 5.0
"""Seconds after which callers no longer join a look-up; a resolver's own time-out per try."""
_MAX_REMEMBERED: Final = 64
"""Number of names whose last good addresses are kept."""

# The name server's answer that a name does not exist, so stale addresses must not be used.
_UNKNOWN_NAME: Final = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
)

_Name: TypeAlias = tuple[str, int]
_Addresses: TypeAlias = tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Lookup:
    """One look-up by the system's resolver, and the callers that wait for it."""

    name: _Name
    asked_at: float
    waiting: set[Future[_Addresses]] = field(default_factory=set)


class HostResolver:
    """A resolver with its own threads, so that a hanging look-up affects only its users.

    Callers that ask for the same name share one look-up. While the name server does not answer,
    the last good addresses are used. May be used from any thread and event loop; a forked child
    begins without look-ups.

    Args:
        max_threads: Maximum of concurrent look-ups; further ones wait in order for a thread.
    """

    def __init__(self, max_threads: int = 4) -> None:
        self._max_threads = max_threads
        self._good: OrderedDict[_Name, tuple[float, _Addresses]] = OrderedDict()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._threads = 0
        self._newest: dict[_Name, _Lookup] = {}
        self._queue: dict[_Lookup, None] = {}

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return the numeric addresses of ``host``, best first.

        There is no time limit; the caller may cancel. The look-up continues without its callers.

        Raises:
            OSError: The name has no address, or the name server cannot be reached.
        """
        if _is_numeric(host):
            return (host,)
        if self._pid != os.getpid():
            self._reset()
        name = (host, port)
        answer: Future[_Addresses] = Future()
        with self._lock:
            lookup = self._join(name)
            lookup.waiting.add(answer)
            good = self._last_good(name)
        seconds = lookup.asked_at + _STALE_AFTER - time.monotonic() if good else None
        try:
            self._ensure_thread()
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(answer)
        except OSError as error:  # includes TimeoutError
            if good and getattr(error, "errno", None) not in _UNKNOWN_NAME:
                return good
            raise
        finally:
            with self._lock:
                lookup.waiting.discard(answer)
                if not lookup.waiting and lookup in self._queue:
                    del self._queue[lookup]
                    self._forget(lookup)

    def _join(self, name: _Name) -> _Lookup:
        """Return the newest look-up of a name, or a new look-up if that one seems to hang."""
        now = time.monotonic()
        lookup = self._newest.get(name)
        if lookup is not None:
            hangs = now - lookup.asked_at > _GIVEN_UP
            if not hangs or self._threads >= self._max_threads:
                return lookup
        lookup = self._newest[name] = _Lookup(name, now)
        self._queue[lookup] = None
        return lookup

    def _last_good(self, name: _Name) -> _Addresses:
        found_at, addresses = self._good.get(name, (0.0, ()))
        return addresses if time.monotonic() - found_at < _STALE_FOR else ()

    def _ensure_thread(self) -> None:
        with self._lock:
            if not self._queue or self._threads >= self._max_threads:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, name="resilient-imagen-dns", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._threads -= 1
            raise

    def _work(self) -> None:
        while (lookup := self._next()) is not None:
            try:
                addresses = _ask_system(*lookup.name)
            except OSError as error:
                self._finish(lookup, (), error)
            except Exception as error:  # noqa: BLE001 - raised to the callers that wait
                self._finish(lookup, (), OSError(f"{type(error).__name__} in the resolver"))
            else:
                self._finish(lookup, addresses, None)

    def _next(self) -> _Lookup | None:
        """Take the first look-up from the queue; None ends the thread."""
        with self._lock:
            lookup = next(iter(self._queue), None)
            if lookup is None:
                self._threads -= 1
            else:
                del self._queue[lookup]
            return lookup

    def _finish(self, lookup: _Lookup, addresses: _Addresses, error: OSError | None) -> None:
        with self._lock:
            self._forget(lookup)
            waiting = tuple(lookup.waiting)
            if error is None:
                self._good[lookup.name] = (time.monotonic(), addresses)
                self._good.move_to_end(lookup.name)
                if len(self._good) > _MAX_REMEMBERED:
                    self._good.popitem(last=False)
        for answer in waiting:
            if not answer.set_running_or_notify_cancel():
                continue
            if error is None:
                answer.set_result(addresses)
            else:
                # A copy for each caller, because a traceback holds its caller's frames.
                answer.set_exception(type(error)(*error.args))

    def _forget(self, lookup: _Lookup) -> None:
        if self._newest.get(lookup.name) is lookup:
            del self._newest[lookup.name]


def _ask_system(host: str, port: int) -> _Addresses:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:  # a label that is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "not a valid host name") from None
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "the host name has no address")
    return addresses


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def alternating(addresses: Sequence[str]) -> Iterator[str]:
    """Order addresses so that IPv4 and IPv6 alternate, beginning with the best address."""
    first = ":" in addresses[0]
    preferred = [address for address in addresses if (":" in address) is first]
    others = [address for address in addresses if (":" in address) is not first]
    for pair in zip_longest(preferred, others):
        yield from (address for address in pair if address is not None)
