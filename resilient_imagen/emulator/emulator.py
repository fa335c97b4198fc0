"""The emulator itself: both vendors, and the way of one request through it."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.emulator.faults import Latency
from resilient_imagen.emulator.gemini import Gemini
from resilient_imagen.emulator.gpt_image import GptImage
from resilient_imagen.emulator.http_messages import ConnectionLost, Reply, json_reply, offload
from resilient_imagen.emulator.renderer import ImageRenderer
from resilient_imagen.emulator.vendor import Vendor
from resilient_imagen.emulator.vendor_api import Answer, ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx2

    from resilient_imagen.emulator.faults import Fault
    from resilient_imagen.emulator.http_messages import HttpRequest
    from resilient_imagen.emulator.renderer import PictureMode
    from resilient_imagen.emulator.vendor import RequestSeen
    from resilient_imagen.emulator.vendor_api import ImageSize, ParsedRequest, Picture

__all__ = ["MAX_BODY", "Emulator", "Exchange"]

MAX_BODY: Final = 256 * 1024 * 1024
"""Bytes of a request's body that are taken by default."""
_BODILESS: Final = (204, 304)
"""Statuses that HTTP forbids to have a body."""


class Emulator:
    """Gemini's and OpenAI's image APIs, as one object to serve over sockets or in memory.

    Args:
        seed: Decides every draw: who is struck by a share, how long an answer takes.
        picture: ``drawn`` shows the request; ``tiny`` is fast; bytes are sent as they are.
        google_keys: The keys that Gemini accepts; None accepts any.
        openai_keys: The same for OpenAI.
        latency: How long good answers take: seconds, or a Latency to draw them from.
        max_body: Bytes of a request's body; a larger one is answered with 413 and not held.

    Raises:
        ValueError: ``picture`` is none of the three.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        picture: PictureMode = "drawn",
        google_keys: Iterable[str] | None = None,
        openai_keys: Iterable[str] | None = None,
        latency: float | Latency = 0.0,
        max_body: int = MAX_BODY,
    ) -> None:
        usual = latency if isinstance(latency, Latency) else Latency(latency)
        self.studio = ImageRenderer(picture)
        self.google = Vendor(Gemini(), seed=seed, keys=google_keys, latency=usual)
        self.openai = Vendor(GptImage(), seed=seed, keys=openai_keys, latency=usual)
        self.max_body = max_body
        self._ids = random.Random(seed)

    @property
    def vendors(self) -> tuple[Vendor, Vendor]:
        """Both vendors."""
        return self.google, self.openai

    @property
    def picture(self) -> PictureMode:
        """What pictures are delivered; may be changed at any time."""
        return self.studio.mode

    @picture.setter
    def picture(self, mode: PictureMode) -> None:
        self.studio = ImageRenderer(mode)

    def heal(self) -> None:
        """Let both vendors forget every fault."""
        for vendor in self.vendors:
            vendor.heal()

    def transport(self) -> httpx2.AsyncBaseTransport:
        """The emulator as an in-memory transport for an ``httpx2.AsyncClient``."""
        from resilient_imagen.emulator.transport import EmulatorTransport

        return EmulatorTransport(self)

    def serve_from(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take this loop's time from here on."""
        for vendor in self.vendors:
            vendor.serve_from(loop)

    def vendor_of(self, path: str) -> Vendor | None:
        """Whose endpoint this path is."""
        return next((v for v in self.vendors if v.dialect.matches(path)), None)

    async def receive(self, request: HttpRequest) -> Exchange:
        """Take in a complete request. The exchange must be closed, whatever happens.

        Raises:
            Refusal: No vendor has such an endpoint, or the body is too large.
        """
        if len(request.body) > self.max_body:
            raise self.too_large(request.path)
        vendor = self.vendor_of(request.path)
        if vendor is None or request.method != "POST":
            message = f"Invalid URL ({request.method} {request.path})"
            body = {"message": message, "type": "invalid_request_error", "param": None}
            raise ApiError(json_reply({"error": {**body, "code": None}}, 404))
        call = await offload(len(request.body), vendor.dialect.read, request)
        return Exchange(self, vendor, request, call)

    def too_large(self, path: str) -> ApiError:
        """The refusal of a body that is larger than ``max_body``, in the vendor's words."""
        vendor = self.vendor_of(path)
        if vendor is None:
            return ApiError(json_reply({"error": {"message": "Request entity too large"}}, 413))
        return ApiError(vendor.dialect.error(413))

    def next_id(self) -> str:
        """An identity for an answer."""
        return f"{self._ids.getrandbits(96):024x}"


class Exchange:
    """One request on its way to its answer."""

    def __init__(
        self, app: Emulator, vendor: Vendor, request: HttpRequest, call: ParsedRequest
    ) -> None:
        self._app = app
        self._request = request
        self._call = call
        self._closed = False
        self.vendor = vendor
        seen, fault, latency = vendor.arrived(call)
        self.seen: RequestSeen = seen
        self._fault: Fault | None = fault
        self._latency = latency

    async def reply(self) -> Reply:
        """The answer, when it is due. Never returns when the fault is to hang.

        Raises:
            ConnectionLost: The fault is to close the connection instead.
        """
        fault = self._fault
        reply = None
        if fault is None or not fault.replaces_answer:
            reply = await self._answer()
        if self._latency:
            await asyncio.sleep(self._latency)
        if reply is None and fault is not None:
            reply = await self._failure(fault)
        assert reply is not None  # noqa: S101 - without a fault there is an answer
        if fault is not None:
            reply = replace(reply, delivery=fault.delivery)
        self.vendor.answered(self.seen, reply.status)
        return replace(reply, headers=(*reply.headers, ("x-request-id", self._app.next_id())))

    def close(self, *, delivered: bool) -> None:
        """The exchange is over; only the first call counts."""
        if not self._closed:
            self._closed = True
            self.vendor.ended(self.seen, delivered=delivered)

    async def _failure(self, fault: Fault) -> Reply:
        if fault.lost:
            raise ConnectionLost(abrupt=fault.delivery.abrupt)
        if fault.hangs:
            await asyncio.get_running_loop().create_future()
        dialect = self.vendor.dialect
        if fault.error is not None:
            return dialect.errors[fault.error](self._call, fault.retry_after)
        code = 500 if fault.code is None else fault.code
        reply = dialect.error(code, fault.retry_after)
        if code in _BODILESS:
            reply = replace(reply, body=b"")
        elif fault.body is not None:
            reply = _with_body(reply, fault.body)
        given = {name for name, _ in fault.headers}
        kept = tuple(pair for pair in reply.headers if pair[0] not in given)
        return replace(reply, headers=(*kept, *fault.headers))

    async def _answer(self) -> Reply:
        dialect = self.vendor.dialect
        size = len(self._request.body)
        try:
            dialect.check_key(self._request, self.vendor.keys)
            canvas = await offload(size, dialect.check, self._call)
        except ApiError as refusal:
            return refusal.reply
        fault = self._fault
        shape = dialect.shapes[(fault and fault.answer) or "good"]
        canvas = shape.canvas(canvas)
        count = canvas.count if shape.pictures is None else shape.pictures
        pictures = [await self._paint(canvas, variant) for variant in range(count)]
        answer = Answer(
            self._call,
            canvas,
            tuple(pictures),
            fault.detail if fault else None,
            int(time.time()),
            self._app.next_id(),
        )
        size = sum(len(picture.data) for picture in pictures)
        return await offload(size, lambda: _encoded(shape.write(answer)))

    async def _paint(self, canvas: ImageSize, variant: int) -> Picture:
        return await self._app.studio.render(self.vendor.name, self._call, canvas, variant)


def _encoded(written: Any) -> Reply:
    return written if isinstance(written, Reply) else json_reply(written)


def _with_body(reply: Reply, body: Any) -> Reply:
    if not isinstance(body, (bytes, str)):
        return replace(json_reply(body, reply.status), headers=reply.headers)
    raw = body.encode() if isinstance(body, str) else body
    kind = "text/html; charset=utf-8" if raw.lstrip()[:1] == b"<" else "text/plain; charset=utf-8"
    if raw.lstrip()[:1] in (b"{", b"["):
        kind = "application/json; charset=utf-8"
    return replace(reply, body=raw, headers=(("content-type", kind),))
