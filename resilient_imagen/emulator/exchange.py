"""Exchange: one request to a vendor, and its response or the fault that replaces it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from resilient_imagen.emulator.event_streams import end_early, stream_reply
from resilient_imagen.emulator.http_messages import ConnectionLost, Reply, json_reply, offload
from resilient_imagen.emulator.vendor_api import Answer, ApiError

if TYPE_CHECKING:
    from resilient_imagen.emulator.faults import Fault
    from resilient_imagen.emulator.http_messages import HttpRequest
    from resilient_imagen.emulator.renderer import ImageRenderer
    from resilient_imagen.emulator.vendor import RequestSeen, Vendor
    from resilient_imagen.emulator.vendor_api import (
        ImageSize,
        ParsedRequest,
        Picture,
        ResponseVariant,
    )

__all__ = ["Exchange", "ExchangeOwner"]

_BODILESS: Final = (204, 304)
"""Statuses that HTTP forbids to have a body."""


class ExchangeOwner(Protocol):
    """The state that all exchanges of an emulator share."""

    renderer: ImageRenderer
    """Renders the images; may be replaced at any time."""

    def next_id(self) -> str:
        """Return a new id for a response."""
        ...


class Exchange:
    """One request in progress."""

    def __init__(
        self, app: ExchangeOwner, vendor: Vendor, request: HttpRequest, call: ParsedRequest
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
        """Return the response when it is due; never return if the fault hangs.

        Raises:
            ConnectionLost: The fault closes the connection.
        """
        fault = self._fault
        reply = None
        if fault is None or not fault.replaces_answer:
            reply = await self._answer()
        # A stream sends its headers at once, and its events spread over the latency.
        silent = fault is not None and fault.silent
        streams = reply is not None and reply.events is not None and not silent
        if self._latency and not streams:
            await asyncio.sleep(self._latency)
        if reply is None and fault is not None:
            reply = await self._failure(fault)
        assert reply is not None  # noqa: S101 - without a fault there is a response
        if fault is not None:
            reply = self._with_fault(reply, fault)
        if streams:
            seconds = max(self._latency, reply.delivery.seconds)
            reply = replace(reply, delivery=replace(reply.delivery, seconds=seconds))
        self.vendor.answered(self.seen, reply.status)
        return replace(reply, headers=(*reply.headers, ("x-request-id", self._app.next_id())))

    def close(self, *, delivered: bool) -> None:
        """End the exchange; further calls have no effect."""
        if not self._closed:
            self._closed = True
            self.vendor.ended(self.seen, delivered=delivered)

    def _with_fault(self, reply: Reply, fault: Fault) -> Reply:
        """Return the response with the fault in its delivery."""
        if fault.after_events is None:
            return replace(reply, delivery=fault.delivery)
        error = None
        if fault.event is not None:
            error = self.vendor.dialect.errors[fault.event](self._call, fault.retry_after)
        return end_early(reply, fault, error)

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
        previews = canvas.previews or 0
        painted = [await self._paint(canvas, variant) for variant in range(count + previews)]
        answer = Answer(
            self._call,
            canvas,
            tuple(painted[:count]),
            tuple(painted[count:]),
            fault.detail if fault else None,
            int(time.time()),
            self._app.next_id(),
        )
        size = sum(len(picture.data) for picture in painted)
        return await offload(size, _encoded, shape, answer)

    async def _paint(self, canvas: ImageSize, variant: int) -> Picture:
        return await self._app.renderer.render(self.vendor.name, self._call, canvas, variant)


def _encoded(shape: ResponseVariant, answer: Answer) -> Reply:
    written = shape.write(answer)
    if answer.canvas.previews is not None and isinstance(written, dict):
        return stream_reply(answer, written)
    return written if isinstance(written, Reply) else json_reply(written)


def _with_body(reply: Reply, body: Any) -> Reply:
    if not isinstance(body, (bytes, str)):
        return replace(json_reply(body, reply.status), headers=reply.headers)
    raw = body.encode() if isinstance(body, str) else body
    kind = "text/html; charset=utf-8" if raw.lstrip()[:1] == b"<" else "text/plain; charset=utf-8"
    if raw.lstrip()[:1] in (b"{", b"["):
        kind = "application/json; charset=utf-8"
    return replace(reply, body=raw, headers=(("content-type", kind),))
