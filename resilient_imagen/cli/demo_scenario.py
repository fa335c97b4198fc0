"""The demo's scenario: eight scenes are made four times, while Google's condition changes."""

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
    from collections.abc import Callable, Iterator

    from resilient_imagen import ImageClient, ImageResult
    from resilient_imagen.emulator import Fault

__all__ = ["PHASES", "SCENES", "DemoImage", "DemoRun", "demo_emulator", "demo_settings"]

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
PHASES: Final[dict[str, Fault | None]] = {
    "healthy": None,
    "overloaded": faults.overload().after(0.15),
    "hanging": faults.hang(),
    "back": None,
}
"""Google's condition in each phase, and the fault of its responses."""
_AT_ONCE: Final = 4
"""Scenes that are requested at a time."""
_LANDMARKS: Final = {
    "closed_to_open": "opened the breaker",
    "half_open_to_open": "probed in vain",
    "half_open_to_closed": "closed the breaker again",
}
_SKIPPED: Final = "was skipped past the open breaker"


@dataclass(slots=True)
class DemoImage:
    """One scene in one phase."""

    phase: str
    scene: int
    asking: str | None = None
    """The provider of the request in flight."""
    result: ImageResult | None = None
    failure: str | None = None
    trace_id: str | None = None
    """None if traces are not recorded."""


_current: ContextVar[DemoImage | None] = ContextVar("resilient_imagen_demo_image", default=None)


def demo_settings(*, vertex: bool = False) -> dict[str, Any]:
    """Return all settings, so that the environment changes nothing. Times are short.

    Args:
        vertex: Vertex AI is the second endpoint of Google's model.
    """
    settings = {name: field.default for name, field in Settings.model_fields.items()}
    if vertex:
        primary, *others = settings["routes"]
        settings["routes"] = (primary, f"vertex:{primary.model}", *others)
        settings["providers"] = {"vertex": {"api_key": "emulated", "timeout": 8.0}}
    return settings | {
        "ipm": 600,
        "retry_base_delay": 0.2,
        "per_call_timeout": 2.0,
        "openai_timeout": 8.0,
        "breaker_reset_timeout": 1.5,
        "breaker_reset_max": 2.0,
    }


def demo_emulator() -> Emulator:
    """Return an emulator that is about twenty times faster than the vendors."""
    app = Emulator(seed=1)
    app.google.set_latency(faults.log_normal(0.5, 0.7))
    app.vertex.set_latency(faults.log_normal(0.6, 0.8))
    app.openai.set_latency(faults.log_normal(0.8, 1.0))
    return app


@dataclass(slots=True)
class DemoRun:
    """Runs the phases and records them, as a sink of the client."""

    app: Emulator
    on_image: Callable[[DemoImage], None] = lambda _: None
    """Called with each image that is done."""
    phase: str | None = None
    """The running phase; None before the first one."""
    waiting: bool = False
    """Whether the next phase waits until the breaker admits a probe."""
    images: list[DemoImage] = field(
        default_factory=lambda: [
            DemoImage(phase, scene) for phase in PHASES for scene in range(len(SCENES))
        ]
    )
    transitions: list[tuple[str | None, events.BreakerChanged]] = field(default_factory=list)
    """Each with its phase."""
    skipped: int = 0
    """Calls that the open breaker sent to the next route."""
    wasted: int = 0
    """Requests that reached Google while it could not serve."""
    landmarks: dict[str, DemoImage] = field(default_factory=dict)
    """Images whose traces are examples, by their topic."""

    inline = True

    async def run(self, client: ImageClient) -> None:
        """Run all phases."""
        references = [_reference("PNG", (236, 112, 44)), _reference("JPEG", (58, 96, 158))]
        google = self.app.google
        for phase, fault in PHASES.items():
            self.waiting = True
            await asyncio.sleep(client.snapshot()["routes"][0]["breaker"]["retry_after"] or 0)
            self.phase, self.waiting = phase, False
            google.heal()
            google.forget()
            if fault is not None:
                google.set(fault)
            if phase == "healthy":
                google.fail(faults.status(500))  # one failure shows a retry
            left = iter([image for image in self.images if image.phase == phase])
            async with asyncio.TaskGroup() as group:
                for _ in range(_AT_ONCE):
                    group.create_task(self._work(client, left, references))
            if fault is not None:
                self.wasted += len(google.requests)

    async def _work(
        self, client: ImageClient, left: Iterator[DemoImage], references: list[bytes]
    ) -> None:
        for image in left:
            _current.set(image)
            try:
                image.result = await client.generate(
                    SCENES[image.scene], references=references, resolution="1K"
                )
            except ImageGenerationError as error:
                image.failure = str(error)
            image.asking = None
            self.on_image(image)

    def handle(self, event: events.Event) -> None:
        """Record an event of the client."""
        if isinstance(event, events.BreakerChanged):
            self.transitions.append((self.phase, event))
        image = _current.get()
        if image is None:
            return
        if isinstance(event, events.RequestStarted):
            context = trace.get_current_span().get_span_context()
            image.trace_id = trace.format_trace_id(context.trace_id) if context.is_valid else None
        elif isinstance(event, events.AttemptStarted):
            image.asking = event.provider
        elif isinstance(event, events.ShortCircuited):
            self.skipped += 1
            self.landmarks.setdefault(_SKIPPED, image)
        elif isinstance(event, events.AttemptEnded) and event.transition in _LANDMARKS:
            self.landmarks.setdefault(_LANDMARKS[event.transition], image)


def _reference(kind: str, colour: tuple[int, int, int]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (512, 512), colour).save(file, kind)
    return file.getvalue()
