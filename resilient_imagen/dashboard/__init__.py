"""Live page: an ASGI application that shows a client's routes, traffic and orders in a browser.

Needs the extra ``dashboard``.
"""

from resilient_imagen.dashboard.application import app

__all__ = ["app"]
