"""Security: headers of every response, the allowed hosts, and the checks of requests for orders.

A page of another site can send requests here from an operator's browser, but cannot set the header
``Authorization``, which the browser never adds by itself. The other checks are further lines
of defence.
"""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["SHORTEST_TOKEN", "Guard", "checked_token", "refusal"]

SHORTEST_TOKEN: Final = 16
"""Minimum characters of a token."""
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::[0-9]{1,5})?", re.ASCII)
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Adds the headers to every answer, and refuses requests for other hosts.

    Args:
        app: The application.
        hosts: Allowed names in the Host header, without port; None allows all.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else {each.lower() for each in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if self._hosts is not None and _host_name(Headers(scope=scope)) not in self._hosts:
            answer = PlainTextResponse("This host name is not allowed; see hosts=.\n", 421)
            await answer(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


def checked_token(token: str | None) -> str | None:
    """Return the token.

    Raises:
        ConfigurationError: It is too short, or has characters that a header cannot have.
    """
    if token is None:
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigurationError(
            f"the dashboard's token must have at least {SHORTEST_TOKEN} printable ASCII "
            f"characters, not {len(token)}; omit it for a page without controls"
        )
    return token


def refusal(headers: Headers, token: str | None) -> tuple[int, str] | None:
    """Return status and text for a request that is not allowed to change anything, else None."""
    if token is None:
        return 403, "The page is read-only: the application gave it no token."
    host = headers.get("host", "").lower()
    if headers.get("origin", "").lower() not in {f"http://{host}", f"https://{host}"}:
        return 403, "The request does not come from this page (Origin)."
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return 403, "The request does not come from this page (Sec-Fetch-Site)."
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "The request must be JSON."
    scheme, _, given = headers.get("authorization", "").partition(" ")
    expected = token.encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), expected):
        return 401, "The token is wrong."
    return None


def _host_name(headers: Headers) -> str:
    """Return the name in the header Host, without port; empty if it has another form."""
    found = _HOST.fullmatch(headers.get("host", ""))
    return "" if found is None else found[1].strip("[]").lower()
