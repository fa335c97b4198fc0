"""Common variants of responses: broken forms of a vendor's good response."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.emulator.http_messages import RawJson, Reply, json_reply
from resilient_imagen.emulator.vendor_api import Picture, ResponseVariant

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.emulator.vendor_api import Answer, ImageSize

__all__ = ["common_shapes", "other_ratio"]

_PAGE: Final = (
    b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Sign in</body></html>"
)


class _Unreadable(Picture):
    """An image whose base64 is not valid."""

    @property
    def base64(self) -> RawJson:
        return RawJson(b"this is *not* base64!")


class _Cut(Picture):
    """An image of which the second half is missing."""

    @property
    def base64(self) -> RawJson:
        return RawJson(base64.b64encode(self.data[: len(self.data) // 2]))


def common_shapes(good: Callable[[Answer], Any]) -> dict[str, ResponseVariant]:
    """Return the variants that every vendor has, based on its good response."""

    def bad_json(answer: Answer) -> Reply:
        reply = json_reply(good(answer))
        return replace(reply, body=reply.body[: len(reply.body) // 2])

    def bad_base64(answer: Answer) -> Any:
        broken = tuple(_Unreadable(b"", picture.mime_type) for picture in answer.pictures)
        return good(replace(answer, pictures=broken))

    def picture_cut(answer: Answer) -> Any:
        cut = tuple(_Cut(picture.data, picture.mime_type) for picture in answer.pictures)
        return good(replace(answer, pictures=cut))

    def html(_answer: Answer) -> Reply:
        return Reply(200, _PAGE, (("content-type", "text/html; charset=utf-8"),))

    def no_body(_answer: Answer) -> Reply:
        return Reply(200, b"", (("content-type", "application/json"),))

    return {
        "bad_base64": ResponseVariant(bad_base64),
        "bad_json": ResponseVariant(bad_json),
        "body_empty": ResponseVariant(no_body, pictures=0),
        "body_list": ResponseVariant(lambda _: [], pictures=0),
        "body_null": ResponseVariant(lambda _: None, pictures=0),
        "body_object": ResponseVariant(lambda _: {}, pictures=0),
        "good": ResponseVariant(good),
        "html": ResponseVariant(html, pictures=0),
        "picture_cut": ResponseVariant(picture_cut),
    }


def other_ratio(canvas: ImageSize) -> ImageSize:
    """Return a square; for a square, a size that is not square."""
    side = min(canvas.width, canvas.height)
    wide = side * 2 if canvas.width == canvas.height else side
    return replace(canvas, width=wide, height=side)
