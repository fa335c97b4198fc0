"""The demo's output: the live table, what the breaker did, and the contact sheet."""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFont
from rich.live import Live
from rich.table import Table
from rich.text import Text

from resilient_imagen.cli.demo_scenario import PHASES, SCENES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from resilient_imagen import ImageClient
    from resilient_imagen.cli.demo_scenario import DemoImage, DemoRun
    from resilient_imagen.snapshots import BreakerSnapshot
    from resilient_imagen.telemetry.events import BreakerChanged

__all__ = ["draw_contact_sheet", "show_breaker", "watching"]

_STYLES: Final = {"google": "blue", "vertex": "cyan", "openai": "green"}
_WIDEST: Final = 52
_CELL: Final = 13
"""Characters of ``openai 12.3 s``. On a narrow terminal the scene's column is shortened."""
_TRANSITIONS: Final = {
    "closed_to_open": "opened for {after:.1f} s, after {failures} failures in a row ({cause})",
    "open_to_half_open": "let one call through as a probe",
    "half_open_to_open": "the probe failed ({cause}): opened for {after:.1f} s",
    "half_open_to_closed": "the probe was served: closed",
    "open_to_closed": "the server's hint expired: closed",
}
_THUMB: Final = (144, 256)
_GAP: Final = 10
_LABEL: Final = 150
_CAPTION: Final = 22
_INK: Final = (30, 32, 38)
_PAPER: Final = (250, 249, 246)
_COLOURS: Final = {"google": (45, 92, 190), "openai": (22, 128, 92)}


@contextmanager
def watching(console: Console, run: DemoRun, client: ImageClient) -> Iterator[None]:
    """Show the table live; without a terminal, a line for each image and the table at the end."""

    def table() -> Table:
        breaker = client.snapshot()["routes"][0]["breaker"]
        return _table(run, breaker, room=console.width - len(PHASES) * (_CELL + 3) - 4)

    if console.is_terminal:
        with Live(get_renderable=table, console=console, refresh_per_second=8):
            yield
        return
    run.on_image = lambda image: console.print(_line(image))
    yield
    console.print()
    console.print(table())


def _table(run: DemoRun, breaker: BreakerSnapshot, room: int) -> Table:
    table = Table(caption=_caption(run, breaker), caption_justify="left")
    width = max(9, min(_WIDEST, room))
    table.add_column("Google is", no_wrap=True, overflow="ellipsis", width=width)
    for phase in PHASES:
        style = "reverse" if phase == run.phase else ""
        table.add_column(Text(phase, style=style), no_wrap=True, width=_CELL)
    for number, scene in enumerate(SCENES):
        cells = [_cell(image) for image in run.images if image.scene == number]
        table.add_row(f"{number + 1} {scene}", *cells)
    return table


def _cell(image: DemoImage) -> Text:
    if image.failure is not None:
        return Text(image.failure, style="red")
    if image.result is None:
        return Text(f"{image.asking} ..." if image.asking else "", style="dim")
    return Text(_served(image), style=_STYLES.get(image.result.provider, ""))


def _served(image: DemoImage) -> str:
    result = image.result
    return f"{result.provider} {result.latency_s:.1f} s" if result else "no image"


def _caption(run: DemoRun, breaker: BreakerSnapshot) -> str:
    words = {"closed": "closed: calls go to Google", "half_open": "half open: one probe is out"}
    state = words.get(breaker["state"], breaker["state"])
    if breaker["retry_after"] is not None:
        state = f"open: Google is skipped, for {breaker['retry_after']:.1f} s more"
    waiting = "; the next phase waits for it" if run.waiting and run.phase else ""
    return f"circuit breaker {state}{waiting}"


def _line(image: DemoImage) -> str:
    reason = image.failure or (image.result and image.result.fallback_reason)
    why = f"  ({reason})" if reason else ""
    return f"Google {image.phase:<10}  scene {image.scene + 1}  {_served(image)}{why}"


def show_breaker(console: Console, run: DemoRun) -> None:
    """Print the breaker's transitions in order."""
    console.print("What the circuit breaker of Google did:")
    for phase, event in run.transitions:
        if event.provider == "google":
            console.print(f"  Google {phase}: {_described(event)}")
    calls = sum(PHASES[image.phase] is not None for image in run.images)
    served = sum(image.result is not None for image in run.images)
    console.print(
        f"{served} of {len(run.images)} images were delivered. While Google could not serve, "
        f"{calls} calls cost it {run.wasted} requests; {run.skipped} calls of the demo went "
        "straight to the next route."
    )


def _described(event: BreakerChanged) -> str:
    change = event.transition
    name = f"{change.from_state}_to_{change.to_state}"
    return _TRANSITIONS.get(name, name).format(
        after=change.retry_after or 0.0, failures=change.metrics.consecutive, cause=change.summary
    )


def draw_contact_sheet(run: DemoRun, extension: str) -> bytes:
    """Return all images on one page, with phases as rows and scenes as columns.

    Args:
        run: The run.
        extension: Of the page's file: .png, .jpg or .jpeg.
    """
    column, row = _THUMB[0] + _GAP, _THUMB[1] + _CAPTION + _GAP
    size = _LABEL + len(SCENES) * column + _GAP, len(PHASES) * row + _GAP
    page = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(page)
    large, small = ImageFont.load_default(20), ImageFont.load_default(14)
    tops = {phase: _GAP + index * row for index, phase in enumerate(PHASES)}
    for phase, top in tops.items():
        pen.text((_GAP * 2, top + 90), f"Google is\n{phase}", _INK, font=large)
    for image in run.images:
        left, top = _LABEL + image.scene * column, tops[image.phase]
        colour = _INK
        if image.result is None:
            pen.rectangle((left, top, left + _THUMB[0], top + _THUMB[1]), outline=_INK)
        else:
            page.paste(_thumbnail(image.result.image_bytes), (left, top))
            colour = _COLOURS.get(image.result.provider, _INK)
        pen.text((left, top + _THUMB[1] + 3), _served(image), colour, font=small)
    out = io.BytesIO()
    page.save(out, "PNG" if extension.lower() == ".png" else "JPEG")
    return out.getvalue()


def _thumbnail(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", _THUMB)  # a JPEG is decoded no larger than needed
        return image.convert("RGB").resize(_THUMB, Image.Resampling.LANCZOS)
