"""Event streams of OpenAI's image API, and the faults that end them early."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.emulator.http_messages import Reply, json_reply

if TYPE_CHECKING:
    from resilient_imagen.emulator.faults import Fault
    from resilient_imagen.emulator.vendor_api import Answer

__all__ = ["end_early", "error_event", "stream_reply"]

_HEADERS: Final = (("content-type", "text/event-stream; charset=utf-8"),)
_OPERATIONS: Final = {"generate": "image_generation", "edit": "image_edit"}


def stream_reply(answer: Answer, body: dict[str, Any]) -> Reply:
    """Return the previews, and then one event for each image of the body of a normal response."""
    operation = _OPERATIONS[answer.call.operation]
    common = {name: value for name, value in body.items() if name not in ("data", "created")}
    usage = common.pop("usage", None)
    common["created_at"] = answer.created
    previews = [
        _event(
            f"{operation}.partial_image",
            b64_json=picture.base64,
            partial_image_index=index,
            **common,
        )
        for index, picture in enumerate(answer.previews)
    ]
    images = [
        _event(f"{operation}.completed", **common, **image, usage=usage)
        for image in body.get("data") or [{}]
    ]
    return Reply(200, b"", _HEADERS, events=(*previews, *images))


def error_event(error: Reply) -> bytes:
    """Return the event that reports an error after a stream has begun."""
    return (
        b'event: error\ndata: {"type": "error", ' + error.body.strip().removeprefix(b"{") + b"\n\n"
    )


def end_early(reply: Reply, fault: Fault, error: Reply | None) -> Reply:
    """Return the stream with the fault in it; a response that is not a stream is not changed.

    An image that the fault would have to follow is not sent: an error or the end of the stream
    comes at its latest in place of the first image.
    """
    if reply.events is None or fault.after_events is None:
        return reply
    if error is None and not fault.ends_stream:
        return replace(reply, delivery=replace(fault.delivery, events=fault.after_events))
    before = next(
        (at for at, event in enumerate(reply.events) if b".completed\n" in event[:64]),
        len(reply.events),
    )
    kept = reply.events[: min(before, fault.after_events)]
    return replace(reply, events=kept if error is None else (*kept, error_event(error)))


def _event(kind: str, **fields: Any) -> bytes:
    data = json_reply({"type": kind, **fields}).body
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
