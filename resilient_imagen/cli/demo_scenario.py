"""The demo's story: eight scenes, made four times, while Google is well, ill, gone and back.

One hiccup while Google is well shows a retry.
"""

from __future__ import annotations

import asyncio
import io
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from resilient_imagen import ImageGenerationError, Settings
from resilient_imagen.emulator import Emulator, faults
from resilient_imagen.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen import ImageClient, ImageResult
    from resilient_imagen.emulator import Fault

__all__ = ["ACTS", "SCENES", "DemoImage", "DemoPhase", "DemoRun", "demo_emulator", "demo_settings"]

SCENES: Final = (
    "A lighthouse keeper finds a bottle on the beach at dawn.",
    "She unrolls the map inside, by the light of the lamp.",
    "Her fox watches as she packs a small boat.",
    "They row out between rocks into the fog.",
    "A whale surfaces beside them, huge and calm.",
    "The fog lifts: an island shaped like a sleeping fox.",
    "In a cave a second lighthouse lamp still burns.",
    "At night two lights answer each other over the sea.",
)
_AT_ONCE: Final = 4
"""Scenes at work at a time, as a user interface with four panels would ask for them."""


@dataclass(frozen=True, slots=True)
class DemoPhase:
    """The storyboard once, under one condition."""

    title: str
    fault: Fault | None
    """Google's condition; None where it serves."""
    hiccup: Fault | None = None
    """Fails the first request to Google alone."""


ACTS: Final = (
    DemoPhase("healthy", None, hiccup=faults.status(500)),
    DemoPhase("overloaded", faults.overload().after(0.15)),
    DemoPhase("hanging", faults.hang()),
    DemoPhase("back", None),
)


@dataclass(slots=True)
class DemoImage:
    """One scene of one act, and what became of it."""

    act: int
    scene: int
    asking: str | None = None
    """The provider that is being asked right now."""
    result: ImageResult | None = None
    failure: str | None = None
    trace_id: str | None = None
    """Where to find it in a tracing backend; None when traces go nowhere."""


def demo_settings(*, vertex: bool = False) -> dict[str, Any]:
    """Return every setting, so that the environment has no say; times are short.

    Args:
        vertex: Whether Vertex AI is the second endpoint of Google's model.
    """
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    if vertex:
        primary, *others = defaults["routes"]
        defaults["routes"] = (primary, f"vertex:{primary.model}", *others)
        defaults["providers"] = {"vertex": {"api_key": "emulated", "timeout": 8.0}}
    return {
        **defaults,
        "ipm": 600,
        "retry_base_delay": 0.2,
        "per_call_timeout": 2.0,
        "openai_timeout": 8.0,
        "breaker_reset_timeout": 1.5,
        "breaker_reset_max": 2.0,
    }


def demo_emulator() -> Emulator:
    """Return an emulator that is some twenty times faster than the real services."""
    app = Emulator(seed=1)
    app.google.set_latency(faults.log_normal(0.5, 0.7))
    app.vertex.set_latency(faults.log_normal(0.6, 0.8))
    app.openai.set_latency(faults.log_normal(0.8, 1.0))
    return app


@dataclass(slots=True)
class DemoRun:
    """Runs the phases and records what happened; a sink of the client."""

    app: Emulator
    changed: Callable[[DemoImage], None] = lambda _: None
    """Called when a panel is done."""
    act: int = -1
    """The one that runs; -1 before the first."""
    waiting: bool = False
    """Whether the next act waits for the breaker to let a probe through."""
    panels: list[DemoImage] = field(
        default_factory=lambda: [
            DemoImage(act, scene) for act in range(len(ACTS)) for scene in range(len(SCENES))
        ]
    )
    transitions: list[tuple[int, events.BreakerChanged]] = field(default_factory=list)
    """With the act in which each happened."""
    skipped: int = 0
    """Calls that the breaker let past Google without asking it."""
    wasted: int = 0
    """Requests that reached Google while it could not serve."""
    landmarks: dict[str, DemoImage] = field(default_factory=dict)
    """The panels worth looking at in a tracing backend, by what they show."""

    inline = True

    async def run(self, client: ImageClient) -> None:
        """Play all acts."""
        references = [_reference("PNG", (236, 112, 44)), _reference("JPEG", (58, 96, 158))]
        for index, act in enumerate(ACTS):
            await self._until_probe_is_due(client)
            self.act = index
            self.app.google.heal()
            self.app.google.forget()
            if act.fault is not None:
                self.app.google.set(act.fault)
            if act.hiccup is not None:
                self.app.google.fail(act.hiccup)
            await self._play(client, references)
            if act.fault is not None:
                self.wasted += len(self.app.google.requests)

    async def _play(self, client: ImageClient, references: list[bytes]) -> None:
        left = iter([panel for panel in self.panels if panel.act == self.act])

        async def work() -> None:
            for panel in left:
                await self._make(client, panel, references)

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(work())

    async def _make(self, client: ImageClient, panel: DemoImage, references: list[bytes]) -> None:
        _current.set(panel)
        try:
            panel.result = await client.generate(
                SCENES[panel.scene], references=references, resolution="1K"
            )
        except ImageGenerationError as error:
            panel.failure = str(error)
        panel.asking = None
        self.changed(panel)

    async def _until_probe_is_due(self, client: ImageClient) -> None:
        """The breaker's open time is the only thing that the story waits for."""
        self.waiting = True
        wait = client.snapshot()["routes"][0]["breaker"]["retry_after"]
        if wait is not None:
            await asyncio.sleep(wait)
        self.waiting = False

    def handle(self, event: events.Event) -> None:
        """Take note of what the client says."""
        if isinstance(event, events.BreakerChanged):
            self.transitions.append((self.act, event))
        panel = _current.get()
        if panel is None:
            return
        if isinstance(event, events.RequestStarted):
            panel.trace_id = _trace_id()
        elif isinstance(event, events.AttemptStarted):
            panel.asking = event.provider
        elif isinstance(event, events.ShortCircuited):
            self.skipped += 1
            self.landmarks.setdefault("was skipped past the open breaker", panel)
        elif isinstance(event, events.AttemptEnded) and event.transition in _LANDMARKS:
            self.landmarks.setdefault(_LANDMARKS[event.transition], panel)


_current: ContextVar[DemoImage | None] = ContextVar("resilient_imagen_demo_panel", default=None)

_LANDMARKS: Final = {
    "closed_to_open": "opened the breaker",
    "half_open_to_open": "probed in vain",
    "half_open_to_closed": "closed the breaker again",
}


def _trace_id() -> str | None:
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def _reference(kind: str, colour: tuple[int, int, int]) -> bytes:
    """A character sheet, as far as this story needs one."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (512, 512), (244, 238, 226))
    pen = ImageDraw.Draw(image)
    pen.ellipse((130, 150, 382, 430), fill=colour)
    pen.polygon([(150, 210), (175, 70), (250, 170)], fill=colour)
    pen.polygon([(362, 210), (337, 70), (262, 170)], fill=colour)
    pen.ellipse((200, 250, 230, 285), fill=(20, 20, 24))
    pen.ellipse((282, 250, 312, 285), fill=(20, 20, 24))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
