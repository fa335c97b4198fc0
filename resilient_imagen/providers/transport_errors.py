"""From an exception that came instead of an answer to a reason."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import TYPE_CHECKING, Final

import anyio
import httpx2

from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["description", "never_sent", "transport_reason"]

_TRANSPORT: Final[tuple[tuple[type[BaseException], Reason | None], ...]] = (
    # Ours, not the server's: the pool's size, what we wrote.
    (httpx2.PoolTimeout, None),
    (httpx2.LocalProtocolError, None),
    (httpx2.UnsupportedProtocol, None),
    # Nothing was sent yet, so nothing can have been charged: as good as refused.
    (httpx2.ConnectTimeout, Reason.CONNECTION),
    (httpx2.TimeoutException, Reason.TIMEOUT),
    (httpx2.TransportError, Reason.CONNECTION),
    (httpx2.RequestError, Reason.INVALID_RESPONSE),  # compressed badly, redirected in circles
    (ssl.SSLError, Reason.CONNECTION),
    (anyio.EndOfStream, Reason.CONNECTION),
    (anyio.BrokenResourceError, Reason.CONNECTION),
    (anyio.ClosedResourceError, Reason.CONNECTION),
    (ConnectionError, Reason.CONNECTION),
)
_OUR_LIMITS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def transport_reason(error: BaseException) -> Reason | None:
    """The reason behind an exception that came instead of an answer; None for a local trouble."""
    chain = tuple(_causes(error))
    if any(isinstance(link, OSError) and link.errno in _OUR_LIMITS for link in chain):
        return None
    for link in chain:
        for kind, reason in _TRANSPORT:
            if isinstance(link, kind):
                return reason
    return None


def never_sent(error: BaseException) -> bool:
    """Whether the way to the vendor ended before there was a connection."""
    unmade = (httpx2.ConnectError, httpx2.ConnectTimeout)
    return any(isinstance(link, unmade) for link in _causes(error))


def description(error: BaseException) -> str:
    """Describe a failure of transport in the system's or TLS library's words, else in httpx2's.

    May quote what a server sent: to be redacted.
    """
    links = tuple(_causes(error))
    words = dict.fromkeys(filter(None, map(_system_words, links)))
    if words:
        return "; ".join(words)
    own = (str(link) for link in links if isinstance(link, httpx2.RequestError))
    return next(filter(None, own), "")


def _system_words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError | socket.gaierror):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"[Errno {error.errno}] {os.strerror(error.errno)}"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walk from an exception to what caused it, through groups, to a limited depth."""
    link: BaseException | None = error
    for _ in range(16):
        if link is None:
            return
        yield link
        if isinstance(link, BaseExceptionGroup):
            for part in link.exceptions[:16]:
                yield from _causes(part)
        link = link.__cause__ or link.__context__
