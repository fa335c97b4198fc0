"""The demo on a terminal, or in a file: the table while it grows, and the closing words."""

from __future__ import annotations

from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Final

from rich.live import Live
from rich.table import Table
from rich.text import Text

from resilient_imagen.circuitbreaker import BreakerState
from resilient_imagen.cli.demo_scenario import ACTS, SCENES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from resilient_imagen import ImageClient
    from resilient_imagen.cli.demo_scenario import DemoImage, DemoRun
    from resilient_imagen.snapshots import BreakerSnapshot
    from resilient_imagen.telemetry.events import BreakerChanged

__all__ = ["show_breaker", "show_times", "watching"]

_STYLES: Final = {"google": "blue", "vertex": "cyan", "openai": "green"}
_WIDEST: Final = 52
_CELL: Final = 13
"""Characters of ``openai 12.3 s``; where the terminal is narrow, the scene's words make room."""


@contextmanager
def watching(console: Console, play: DemoRun, client: ImageClient) -> Iterator[None]:
    """The table, live; where nobody can watch, a line an image, and the table at the end."""

    def table() -> Table:
        breaker = client.snapshot()["routes"][0]["breaker"]
        return _table(play, breaker, room=console.width - len(ACTS) * (_CELL + 3) - 4)

    if console.is_terminal:
        with Live(get_renderable=table, console=console, refresh_per_second=8):
            yield
        return
    play.changed = lambda panel: console.print(_line(panel))
    yield
    console.print()
    console.print(table())


def _table(play: DemoRun, breaker: BreakerSnapshot, room: int) -> Table:
    table = Table(caption=_caption(play, breaker), caption_justify="left")
    table.add_column(
        "Google is", no_wrap=True, overflow="ellipsis", width=max(9, min(_WIDEST, room))
    )
    for index, act in enumerate(ACTS):
        now = "reverse" if index == play.act else ""
        table.add_column(Text(act.title, style=now), no_wrap=True, width=_CELL)
    for number, scene in enumerate(SCENES):
        cells = [_cell(panel) for panel in play.panels if panel.scene == number]
        table.add_row(f"{number + 1} {scene}", *cells)
    return table


def _cell(panel: DemoImage) -> Text:
    if panel.failure is not None:
        return Text(panel.failure, style="red")
    if panel.result is None:
        return Text(f"{panel.asking} ..." if panel.asking else "", style="dim")
    provider = panel.result.provider
    return Text(f"{provider} {panel.result.latency_s:.1f} s", style=_STYLES.get(provider, ""))


def _caption(play: DemoRun, breaker: BreakerSnapshot) -> str:
    words = {"closed": "closed: calls go to Google", "half_open": "half open: one probe is out"}
    state = words.get(breaker["state"], breaker["state"])
    if breaker["retry_after"] is not None:
        state = f"open: Google is skipped, for {breaker['retry_after']:.1f} s more"
    waiting = "; the next act waits for it" if play.waiting and play.act >= 0 else ""
    return f"circuit breaker {state}{waiting}"


def _line(panel: DemoImage) -> str:
    where = f"Google {ACTS[panel.act].title:<10}  scene {panel.scene + 1}"
    result = panel.result
    if result is None:
        return f"{where}  no image: {panel.failure}"
    why = f"  ({result.fallback_reason})" if result.fallback_reason else ""
    return f"{where}  {result.provider} {result.latency_s:.1f} s{why}"


def show_times(console: Console, play: DemoRun) -> None:
    """Seconds per image, by provider and act."""
    table = Table(title="seconds per image (median / longest)", title_justify="left")
    table.add_column("")
    served = {panel.result.provider for panel in play.panels if panel.result is not None}
    providers = [each for each in _STYLES if each in {"google", "openai", *served}]
    for provider in providers:
        table.add_column(provider, justify="right")
    for index, act in enumerate(ACTS):
        cells = [_seconds(play, index, provider) for provider in providers]
        table.add_row(f"Google {act.title}", *cells)
    console.print(table)


def _seconds(play: DemoRun, act: int, provider: str) -> str:
    seconds = [
        panel.result.latency_s
        for panel in play.panels
        if panel.act == act and panel.result is not None and panel.result.provider == provider
    ]
    if not seconds:
        return "-"
    return f"{len(seconds)} images: {median(seconds):.1f} / {max(seconds):.1f}"


def show_breaker(console: Console, play: DemoRun) -> None:
    """What the breaker did, in the order it happened."""
    console.print("What the circuit breaker of Google did:")
    for act, event in play.transitions:
        if event.provider == "google":
            console.print(f"  Google {ACTS[act].title}: {_told(event)}")
    ill = [panel for panel in play.panels if ACTS[panel.act].fault is not None]
    served = sum(panel.result is not None for panel in play.panels)
    console.print(
        f"{served} of {len(play.panels)} images were delivered. While Google could not serve, "
        f"{len(ill)} calls cost it {play.wasted} requests; {play.skipped} calls of the demo went "
        "straight to the next route."
    )


def _told(event: BreakerChanged) -> str:
    change = event.transition
    words: dict[tuple[BreakerState, BreakerState], Callable[[], str]] = {
        (BreakerState.CLOSED, BreakerState.OPEN): lambda: (
            f"opened for {change.retry_after:.1f} s, after {change.metrics.consecutive} failures "
            f"in a row ({change.summary})"
        ),
        (BreakerState.OPEN, BreakerState.HALF_OPEN): lambda: "let one call through as a probe",
        (BreakerState.HALF_OPEN, BreakerState.OPEN): lambda: (
            f"the probe failed ({change.summary}): opened for {change.retry_after:.1f} s"
        ),
        (BreakerState.HALF_OPEN, BreakerState.CLOSED): lambda: "the probe was served: closed",
        (BreakerState.OPEN, BreakerState.CLOSED): lambda: "the server's hint was over: closed",
    }
    tell = words.get((change.from_state, change.to_state))
    return tell() if tell else f"{change.from_state} to {change.to_state}"
