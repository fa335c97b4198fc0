"""Which figures become which rows, and why where we are not ahead."""

from __future__ import annotations

from dataclasses import dataclass

from resource_probe import CALLERS, PATIENCE, Figures
from table import ResultRow

ByDesign = dict[str, Figures]


@dataclass(frozen=True)
class Found:
    """All that was measured, by design."""

    middleware: ByDesign
    """``ok`` and ``fallback``, microseconds of CPU; ours with the machine's ``scale``, too."""
    images: dict[str, ByDesign]
    """Per load what ``watch`` tells."""
    outages: dict[str, ByDesign]
    """Per outage what ``worlds`` sums up."""
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
HELD = "what the allocator keeps for the next ones"
SLOTS = "callers beyond our slots wait for them"
LIMITS = (
    "who keeps no limits never waits for a slot or for a place in the minute; and a breaker's "
    "probe is a request, whose failure somebody waits for"
)
WAITED = "who sets no limit waits for each picture instead, for minutes"
LATER = (
    "the others send requests to Google all the time; we send a probe each minute, or less often "
    "if probes take long: `IMAGE_GEN_BREAKER_RESET_TIMEOUT` makes the interval shorter, at more "
    "failed probes"
)
NAMES = "what is left is asyncio itself"
MODULES = "one SDK, and then settings, breaker, events and telemetry's API"
CHECKS = "Pillow, breaker, settings, events and telemetry's API come beside the two SDKs"

LOADS = {
    "small": "a small picture",
    "4K google": "20 MB from Google",
    "4K google, 8": "20 MB from Google, eight at once",
    "4K openai": "20 MB from OpenAI",
    "4K openai, 8": "20 MB from OpenAI, eight at once",
    "references": "eight 2K references",
}
SHOWN = {
    "small": ("first_s", "wall_ms", "cpu_ms", "process_mb"),
    "4K google": ("wall_ms", "cpu_ms", "stall_ms", "peak_mb"),
    "4K google, 8": ("wall_ms", "stall_ms", "peak_mb", "left_mb"),
    "4K openai": ("wall_ms", "cpu_ms", "stall_ms", "peak_mb"),
    "4K openai, 8": ("wall_ms", "stall_ms", "peak_mb", "left_mb"),
    "references": ("wall_ms", "cpu_ms", "stall_ms", "peak_mb"),
}
FIGURES = {
    "first_s": ("the first of a process, imports included, s of CPU", MODULES),
    "wall_ms": ("time, ms a picture", OFF_LOOP),
    "cpu_ms": ("CPU, ms a picture", LOOKED_AT),
    "stall_ms": ("the event loop stands still, ms", NOISE),
    "process_mb": ("the process at its largest, MB", MEMORY),
    "peak_mb": ("memory on top, MB", MEMORY),
    "left_mb": ("of that still held when the pictures are gone, MB", HELD),
}
ALL_SERVED = 0.995
"""Share of callers from which on it rounds to all of them."""
AGAIN = "18 to 42 minutes of overload"
"""The outage whose end is looked at."""


def rows(found: Found) -> list[ResultRow]:
    """Every row of the table, in order."""
    return [
        *_middleware(found.middleware),
        *_images(found.images),
        *_hang(found.images),
        *_outages(found.outages),
        ResultRow(
            "import, s (ours brings the rest with the first call, or `warm_up()`)",
            found.imports,
            NAMES,
            goal=0.15,
        ),
        ResultRow("installed, MB (the two chains: without any vendor's SDK)", found.sizes, CHECKS),
    ]


def _middleware(found: ByDesign) -> list[ResultRow]:
    titles = {
        "ok": ("added to a call, µs of CPU", 50.0),
        "fallback": ("added to a call that falls back, µs of CPU", 100.0),
    }
    return [
        ResultRow(
            title,
            {name: each[way] for name, each in found.items()},
            GUARDS,
            goal,
            found["ours"]["scale"],
        )
        for way, (title, goal) in titles.items()
    ]


def _images(found: dict[str, ByDesign]) -> list[ResultRow]:
    made = []
    for load, shown in SHOWN.items():
        for figure in shown:
            title, why = FIGURES[figure]
            why = SYNC if load == "small" and figure in {"wall_ms", "cpu_ms"} else why
            cells = {name: each[figure] for name, each in found[load].items()}
            made.append(ResultRow(f"{LOADS[load]}: {title}", cells, why))
    return made


def _hang(found: dict[str, ByDesign]) -> list[ResultRow]:
    cells: dict[str, float | str] = {}
    for name, each in found["hang"].items():
        all_served = each["served"] == CALLERS
        cells[name] = each["last_s"] if all_served else f"{each['served']:.0f} served"
    title = (
        f"Google hangs, limit 1 s a request: all {CALLERS} callers served after, s "
        f"(given up after {PATIENCE:.0f})"
    )
    return [ResultRow(title, cells, SLOTS)]


def _outages(found: dict[str, ByDesign]) -> list[ResultRow]:
    made = []
    for outage, designs in found.items():
        means: dict[str, float | str] = {
            name: each["mean"]
            if each["served"] > ALL_SERVED
            else f"{100 * each['served']:.0f} % served"
            for name, each in designs.items()
        }
        wasted = {name: each["wasted"] for name, each in designs.items()}
        made += [
            ResultRow(f"{outage}: time to an image, s", means, LIMITS),
            ResultRow(f"{outage}: wasted requests", wasted, WAITED),
        ]
        if outage == AGAIN:
            back = {name: each["recovery"] for name, each in designs.items()}
            title = f"first image by Google after {AGAIN}, s from its end"
            made.append(ResultRow(title, back, LATER))
    return made
