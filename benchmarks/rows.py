"""Which figures become which rows, and why where we are not ahead."""

from __future__ import annotations

from dataclasses import dataclass

from table import Row
from watch import CALLERS, PATIENCE, Figures

ByDesign = dict[str, Figures]


@dataclass(frozen=True)
class Found:
    """All that was measured, by design."""

    middleware: ByDesign
    """``ok`` and ``fallback``, microseconds of CPU; ours with the machine's ``scale``, too."""
    images: dict[str, ByDesign]
    """Per load what ``watch`` tells."""
    outages: dict[str, ByDesign]
    """Per world: ``mean``, seconds to the image, and ``doomed``, requests."""
    imports: dict[str, float]
    """Seconds."""
    sizes: dict[str, float]
    """Megabytes."""


GUARDS = "queue, pacing, deadline, breaker and events are in our figure; a bare chain has none"
LOOKED_AT = (
    "we decode the picture, check its type, size and wholeness, and report; a router hands the "
    "vendor's base64 on unseen"
)
SYNC = (
    "guards, and a look at the picture; a sync client in a thread is cheaper, but nobody can "
    "cancel it: see where Google hangs"
)
OFF_LOOP = "the picture is decoded and checked in pieces, in a thread, so that nothing waits for it"
NOISE = "the machine's own delays are in it"
MEMORY = "the picture is kept beside its base64 for the caller; more modules are loaded"
SLOTS = "callers beyond our slots wait for them"
LIMITS = "a router keeps no limits: it never waits for a slot or for its place in the minute"
FEWER = "whoever asks a failing provider less often comes back to it later"
NAMES = "what is left is asyncio itself"
MODULES = "one SDK, and then settings, breaker, events and telemetry's API"
CHECKS = "Pillow, breaker, settings, events and telemetry's API come beside the two SDKs"

LOADS = {
    "small": "a small picture",
    "4K": "a 4K picture of 20 MB",
    "references": "eight 2K references",
}
SHOWN = {
    "small": ("first_s", "wall_ms", "cpu_ms"),
    "4K": ("wall_ms", "cpu_ms", "stall_ms", "peak_mb"),
    "references": ("wall_ms", "cpu_ms", "stall_ms", "peak_mb"),
}
FIGURES = {
    "first_s": ("the first of a process, imports included, s of CPU", MODULES),
    "wall_ms": ("time, ms", OFF_LOOP),
    "cpu_ms": ("CPU, ms", LOOKED_AT),
    "stall_ms": ("the event loop stands still, ms", NOISE),
    "peak_mb": ("peak memory of the process, MB", MEMORY),
}


def rows(found: Found) -> list[Row]:
    """Every row of the table, in order."""
    return [
        *_middleware(found.middleware),
        *_images(found.images),
        *_hang(found.images),
        *_outages(found.outages),
        Row(
            "import, s (ours brings the rest with the first call, or `warm_up()`)",
            found.imports,
            NAMES,
            goal=0.15,
        ),
        Row("installed, MB (the two chains: without any vendor's SDK)", found.sizes, CHECKS),
    ]


def _middleware(found: ByDesign) -> list[Row]:
    titles = {
        "ok": ("added to a call, µs of CPU", 50.0),
        "fallback": ("added to a call that falls back, µs of CPU", 100.0),
    }
    return [
        Row(
            title,
            {name: each[way] for name, each in found.items()},
            GUARDS,
            goal,
            found["ours"]["scale"],
        )
        for way, (title, goal) in titles.items()
    ]


def _images(found: dict[str, ByDesign]) -> list[Row]:
    made = []
    for load, shown in SHOWN.items():
        for figure in shown:
            title, why = FIGURES[figure]
            why = SYNC if load == "small" and figure != "first_s" else why
            cells = {name: each[figure] for name, each in found[load].items()}
            made.append(Row(f"{LOADS[load]}: {title}", cells, why))
    return made


def _hang(found: dict[str, ByDesign]) -> list[Row]:
    cells: dict[str, float | str] = {}
    for name, each in found["hang"].items():
        all_served = each["served"] == CALLERS
        cells[name] = each["last_s"] if all_served else f"{each['served']:.0f} served"
    title = (
        f"Google hangs, limit 1 s a request: all {CALLERS} callers served after, s "
        f"(given up after {PATIENCE:.0f})"
    )
    return [Row(title, cells, SLOTS)]


def _outages(found: dict[str, ByDesign]) -> list[Row]:
    return [
        Row(f"{world}: {what}", {name: each[key] for name, each in designs.items()}, why)
        for world, designs in found.items()
        for key, what, why in (
            ("mean", "mean time to an image, s", LIMITS),
            ("doomed", "requests in vain", FEWER),
        )
    ]
