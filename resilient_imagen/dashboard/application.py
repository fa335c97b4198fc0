"""The application: the page, its stream and its orders, as one ASGI application to be mounted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from resilient_imagen._validation import checked, shown_address
from resilient_imagen.control.overrides import variables_for
from resilient_imagen.dashboard.orders import OrderEndpoint
from resilient_imagen.dashboard.security import Guard, checked_token
from resilient_imagen.dashboard.stream import Broadcaster, EventStream
from resilient_imagen.dashboard.view import ClientSource
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from resilient_imagen.client import ImageClient
    from resilient_imagen.dashboard.view import Source

__all__ = ["app", "serve"]

_STATIC: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml",
}  # fmt: skip


def app(
    client: ImageClient,
    *,
    token: str | None = None,
    jaeger_url: str | None = None,
    hosts: Collection[str] | None = None,
) -> ASGIApp:
    """Return the live page of a client, to be mounted in FastAPI or Starlette.

    Anyone who can reach the page can read routes, causes and costs. It shows neither prompts nor
    images. It is served on the client's event loop.

    Args:
        client: The client, which may be in use already.
        token: The password that an operator enters to give orders, at least 16 characters. Without
            one, the page is read-only.
        jaeger_url: Address of Jaeger's pages, such as ``http://localhost:16686``, for links to
            traces.
        hosts: Allowed names in the Host header; None allows all. This prevents pages of other sites
            from reading a page on a private address by DNS rebinding.

    Raises:
        ConfigurationError: The token is too short, or ``jaeger_url`` is not an http(s) address.
        TypeError: ``client`` is not an ``ImageClient``, such as one of ``resilient_imagen.sync``.
    """
    from resilient_imagen.client import ImageClient

    if not isinstance(client, ImageClient):
        raise TypeError(
            f"client must be a resilient_imagen.ImageClient, not {type(client).__module__}."
            f"{type(client).__name__}"
        )
    return serve(ClientSource(client), token=token, jaeger_url=jaeger_url, hosts=hosts)


def serve(
    source: Source,
    *,
    token: str | None,
    jaeger_url: str | None,
    hosts: Collection[str] | None,
) -> ASGIApp:
    """Return the page of any source; arguments are those of ``app``."""
    token, broadcaster = checked_token(token), Broadcaster(source.read)
    page = {
        "controls": token is not None,
        "jaeger_url": _checked_address(jaeger_url),
        "variables": [] if token is None else variables_for(()),
    }
    orders = OrderEndpoint(source, token)

    async def configuration(_: Request) -> Response:
        return JSONResponse(page)

    async def stream(_: Request) -> ASGIApp:
        return EventStream(broadcaster)

    return Starlette(
        routes=[
            Route("/", _file("page.html")),
            *(Route(f"/{name}", _file(name)) for name in _FILES),
            Route("/configuration", configuration),
            Route("/orders", orders.answer, methods=["POST"]),
            Route("/events", stream),
        ],
        middleware=[Middleware(partial(Guard, hosts=hosts))],
    )


_FILES: Final = ("page.css", "page.js", "elements.js", "charts.js", "controls.js", "icon.svg")


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    content = (_STATIC / name).read_bytes()
    media_type = _TYPES[Path(name).suffix]

    async def send_file(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return send_file


def _checked_address(url: str | None) -> str | None:
    if url is None:
        return None
    shown: str = checked("jaeger_url", shown_address, url)
    if "@" in url:  # browsers do not follow a link with credentials
        raise ConfigurationError("jaeger_url must not contain a user name or a password")
    return shown.rstrip("/")
