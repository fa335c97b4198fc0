"""All pictures of the demo on one page: acts down, scenes across."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFont

from resilient_imagen.cli.demo_scenario import ACTS, SCENES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.cli.demo_scenario import DemoImage

__all__ = ["draw_contact_sheet"]

_THUMB: Final = (144, 256)
_GAP: Final = 10
_LABEL: Final = 150
_CAPTION: Final = 22
_INK: Final = (30, 32, 38)
_PAPER: Final = (250, 249, 246)
_COLOURS: Final = {"google": (45, 92, 190), "openai": (22, 128, 92)}


def draw_contact_sheet(panels: Sequence[DemoImage], extension: str) -> bytes:
    """Draw the page, encoded as its file's extension names it: .png, .jpg or .jpeg.

    A panel without a picture stays empty and says why.
    """
    column, row = _THUMB[0] + _GAP, _THUMB[1] + _CAPTION + _GAP
    page = Image.new("RGB", (_LABEL + len(SCENES) * column + _GAP, len(ACTS) * row + _GAP), _PAPER)
    pen = ImageDraw.Draw(page)
    large, small = ImageFont.load_default(20), ImageFont.load_default(14)
    for index, act in enumerate(ACTS):
        pen.text((_GAP * 2, _GAP + index * row + 90), f"Google is\n{act.title}", _INK, font=large)
    for panel in panels:
        left, top = _LABEL + panel.scene * column, _GAP + panel.act * row
        if panel.result is None:
            pen.rectangle((left, top, left + _THUMB[0], top + _THUMB[1]), outline=_INK)
            pen.text((left, top + _THUMB[1] + 3), "no image", _INK, font=small)
            continue
        page.paste(_thumbnail(panel.result.image_bytes), (left, top))
        caption = f"{panel.result.provider}  {panel.result.latency_s:.1f} s"
        colour = _COLOURS.get(panel.result.provider, _INK)
        pen.text((left, top + _THUMB[1] + 3), caption, colour, font=small)
    out = io.BytesIO()
    page.save(out, "PNG" if extension.lower() == ".png" else "JPEG")
    return out.getvalue()


def _thumbnail(picture: bytes) -> Image.Image:
    with Image.open(io.BytesIO(picture)) as image:
        image.draft("RGB", _THUMB)  # a JPEG is decoded no larger than needed
        return image.convert("RGB").resize(_THUMB, Image.Resampling.LANCZOS)
