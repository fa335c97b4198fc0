"""Live page: an ASGI application that shows a client's routes, traffic and orders in a browser.

Needs the extra ``dashboard``.
"""

try:
    from resilient_imagen.dashboard.application import app
except ModuleNotFoundError as error:
    if error.name != "starlette":
        raise
    raise ModuleNotFoundError(
        "the live page needs starlette: pip install 'resilient-imagen[dashboard]'", name=error.name
    ) from None

__all__ = ["app"]
