"""Orders from the page: checks origin and token of a request, then gives the order."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse

from resilient_imagen.control import new_order
from resilient_imagen.dashboard.security import refusal
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from resilient_imagen.control import Order
    from resilient_imagen.dashboard.view import Source

__all__ = ["OrderEndpoint"]

_log = logging.getLogger("resilient_imagen")

_LARGEST: Final = 4096
"""Maximum bytes of a request."""
_SLOWEST: Final = 5.0
"""Seconds for a browser to send it."""
_QUIET: Final = 60.0
"""Seconds between two warnings about refused requests."""
_FIELDS: Final = frozenset({"action", "target", "value", "even_account", "seconds", "by", "why"})


class OrderEndpoint:
    """Accepts orders as JSON, and responds how each is obeyed.

    Args:
        source: Receives the orders.
        token: What a request needs in its header ``Authorization``; None refuses all.
    """

    def __init__(self, source: Source, token: str | None) -> None:
        self._source = source
        self._token = token
        self._warned_at = float("-inf")

    async def answer(self, request: Request) -> Response:
        """Give one order: 200 with the answer, or an error with the cause."""
        refused = refusal(request.headers, self._token)
        if refused is not None:
            self._warn(refused[1])
            return _failed(*refused)
        try:
            async with asyncio.timeout(_SLOWEST):
                body = await _body(request)
        except TimeoutError:
            return _failed(408, "The request took too long.")
        if body is None:
            return _failed(413, f"The request is larger than {_LARGEST} bytes.")
        try:
            order = _order(body)
            answer = await self._source.give(order)
        except ConfigurationError as error:
            return _failed(400, str(error))
        return JSONResponse({"order": str(order), "answer": answer})

    def _warn(self, why: str) -> None:
        """Report refused requests, at most once a minute, so that they cannot fill the log."""
        now = asyncio.get_running_loop().time()
        if now - self._warned_at >= _QUIET:
            self._warned_at = now
            _log.warning("dashboard: an order was refused. %s", why)


def _failed(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status)


async def _body(request: Request) -> bytes | None:
    """Return the body; None if it is too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST:
            return None
    return body


def _order(body: bytes) -> Order:
    """Return the order that a request describes.

    Raises:
        ConfigurationError: The body is not an order; the text has the cause.
    """
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise ConfigurationError("an order must be a JSON object") from None
    if not isinstance(found, dict) or not _FIELDS.issuperset(found):
        raise ConfigurationError(f"an order must be an object with {', '.join(sorted(_FIELDS))}")
    try:
        return new_order(**found)
    except TypeError:
        raise ConfigurationError("an order needs action, target and by") from None
