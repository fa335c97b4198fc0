"""Classify transport errors: exceptions raised instead of a response."""

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
    # Local failures: the pool's size, an invalid request.
    (httpx2.PoolTimeout, None),
    (httpx2.LocalProtocolError, None),
    (httpx2.UnsupportedProtocol, None),
    # Nothing was sent, so nothing can have been billed: the same as a refused connection.
    (httpx2.ConnectTimeout, Reason.CONNECTION),
    (httpx2.TimeoutException, Reason.TIMEOUT),
    (httpx2.TransportError, Reason.CONNECTION),
    (
        httpx2.RequestError,
        Reason.INVALID_RESPONSE,
    ),  # a body that cannot be decompressed, a redirect loop
    (ssl.SSLError, Reason.CONNECTION),
    (anyio.EndOfStream, Reason.CONNECTION),
    (anyio.BrokenResourceError, Reason.CONNECTION),
    (anyio.ClosedResourceError, Reason.CONNECTION),
    (ConnectionError, Reason.CONNECTION),
)
_OUR_LIMITS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def transport_reason(error: BaseException) -> Reason | None:
    """Return the reason of a transport failure; None for a local failure."""
    chain = tuple(_causes(error))
    if any(isinstance(link, OSError) and link.errno in _OUR_LIMITS for link in chain):
        return None
    for link in chain:
        for kind, reason in _TRANSPORT:
            if isinstance(link, kind):
                return reason
    return None


def never_sent(error: BaseException) -> bool:
    """Return whether the failure happened before a connection was made."""
    connect_errors = (httpx2.ConnectError, httpx2.ConnectTimeout)
    return any(isinstance(link, connect_errors) for link in _causes(error))


def description(error: BaseException) -> str:
    """Return the message of the operating system or TLS library, else of httpx2.

    It may quote data that a server sent, so it must be redacted.
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
    """Yield an exception and its causes and contexts, through groups, to a limited depth."""
    link: BaseException | None = error
    for _ in range(16):
        if link is None:
            return
        yield link
        if isinstance(link, BaseExceptionGroup):
            for part in link.exceptions[:16]:
                yield from _causes(part)
        link = link.__cause__ or link.__context__
