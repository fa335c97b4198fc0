"""Emulator application: the vendors, both clouds, a token server and their shared state."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from resilient_imagen.emulator.azure import Azure
from resilient_imagen.emulator.compatible import Compatible
from resilient_imagen.emulator.exchange import Exchange
from resilient_imagen.emulator.faults import Latency
from resilient_imagen.emulator.gemini import Gemini
from resilient_imagen.emulator.gpt_image import GptImage
from resilient_imagen.emulator.http_messages import json_reply, offload
from resilient_imagen.emulator.renderer import ImageRenderer
from resilient_imagen.emulator.token_server import IDENTITY_PATH, TokenServer
from resilient_imagen.emulator.vendor import Vendor
from resilient_imagen.emulator.vendor_api import ApiError
from resilient_imagen.emulator.vertex import Vertex

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping

    import httpx2

    from resilient_imagen.emulator.http_messages import HttpRequest
    from resilient_imagen.emulator.renderer import PictureMode

__all__ = ["MAX_BODY", "Emulator"]

MAX_BODY: Final = 256 * 1024 * 1024
"""Default maximum bytes of a request's body."""


class Emulator:
    """Gemini's and OpenAI's image APIs as one application, to serve over sockets or in memory.

    It also serves the paths of Vertex AI and Azure, a token server, and a strict vendor with
    OpenAI's API.

    Args:
        seed: Seed of all random choices: which requests fail, and the latencies.
        picture: ``drawn`` shows the request; ``tiny`` is fast; bytes are sent unchanged.
        google_keys: The keys that Gemini accepts; None accepts any.
        openai_keys: The keys that OpenAI accepts; None accepts any.
        vertex_keys: The access tokens and express-mode keys that Vertex AI accepts; None accepts
            any.
        azure_keys: The keys and access tokens that Azure accepts; None accepts any.
        azure_deployments: The model of each deployment on Azure; None means that each model has a
            deployment of its name.
        token_lifetime: Seconds until an access token expires.
        latency: Seconds of successful responses, or a Latency to draw them from.
        max_body: Maximum bytes of a request's body; a larger body gets a 413.

    Raises:
        ValueError: ``picture`` is not one of these.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        picture: PictureMode = "drawn",
        google_keys: Iterable[str] | None = None,
        openai_keys: Iterable[str] | None = None,
        vertex_keys: Iterable[str] | None = None,
        azure_keys: Iterable[str] | None = None,
        azure_deployments: Mapping[str, str] | None = None,
        token_lifetime: float = 3600.0,
        latency: float | Latency = 0.0,
        max_body: int = MAX_BODY,
    ) -> None:
        usual = latency if isinstance(latency, Latency) else Latency(latency)
        self.renderer: ImageRenderer = ImageRenderer(picture)
        self.google: Vendor = Vendor(Gemini(), seed=seed, keys=google_keys, latency=usual)
        self.openai: Vendor = Vendor(GptImage(), seed=seed, keys=openai_keys, latency=usual)
        self.vertex: Vendor = Vendor(Vertex(), seed=seed, keys=vertex_keys, latency=usual)
        self.azure: Vendor = Vendor(
            Azure(azure_deployments), seed=seed, keys=azure_keys, latency=usual
        )
        self.compatible: Vendor = Vendor(Compatible(), seed=seed, keys=None, latency=usual)
        self.tokens: Vendor = Vendor(
            TokenServer(token_lifetime), seed=seed, keys=None, latency=Latency(0.0)
        )
        self.max_body = max_body
        self._ids = random.Random(seed)

    @property
    def vendors(self) -> tuple[Vendor, Vendor]:
        """Both vendors' own APIs."""
        return self.google, self.openai

    @property
    def services(self) -> tuple[Vendor, ...]:
        """Everything that is served: the vendors' APIs, both clouds and the token server."""
        return (*self.vendors, self.vertex, self.azure, self.compatible, self.tokens)

    @property
    def picture(self) -> PictureMode:
        """The kind of images that are delivered; may be changed at any time."""
        return self.renderer.mode

    @picture.setter
    def picture(self, mode: PictureMode) -> None:
        self.renderer = ImageRenderer(mode)

    def heal(self) -> None:
        """Clear all faults of all services."""
        for vendor in self.services:
            vendor.heal()

    def transport(self) -> httpx2.AsyncBaseTransport:
        """Return an in-memory transport for an ``httpx2.AsyncClient``."""
        from resilient_imagen.emulator.transport import EmulatorTransport

        return EmulatorTransport(self)

    def serve_from(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this loop's clock from now on."""
        for vendor in self.services:
            vendor.serve_from(loop)

    def vendor_of(self, path: str) -> Vendor | None:
        """Return the vendor with an endpoint at this path, or None."""
        return next((v for v in self.services if v.dialect.matches(path)), None)

    async def receive(self, request: HttpRequest) -> Exchange:
        """Begin an exchange for a complete request. The caller must close it in any case.

        Raises:
            ApiError: No vendor has such an endpoint, or the body is too large.
        """
        if len(request.body) > self.max_body:
            raise self.too_large(request.path)
        vendor = self.vendor_of(request.path)
        if vendor is None or request.method != ("GET" if request.path == IDENTITY_PATH else "POST"):
            message = f"Invalid URL ({request.method} {request.path})"
            body = {"message": message, "type": "invalid_request_error", "param": None}
            raise ApiError(json_reply({"error": {**body, "code": None}}, 404))
        call = await offload(len(request.body), vendor.dialect.read, request)
        return Exchange(self, vendor, request, call)

    def too_large(self, path: str) -> ApiError:
        """Return the vendor's error for a body larger than ``max_body``."""
        vendor = self.vendor_of(path)
        if vendor is None:
            return ApiError(json_reply({"error": {"message": "Request entity too large"}}, 413))
        return ApiError(vendor.dialect.error(413))

    def next_id(self) -> str:
        """Return a new id for a response."""
        return f"{self._ids.getrandbits(96):024x}"
