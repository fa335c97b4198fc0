"""From figures to the rows of the table in the guide, with a reason where we are behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ByDesign = dict[str, dict[str, float]]
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
OURS = "ours"
DESIGNS = {
    "bare": "bare SDK",
    "retries": "retries, then fallback, simulated",
    "cooldown": "cooldown, simulated",
    OURS: "this library",
    "litellm": "litellm Router",
    "langchain": "langchain with_fallbacks",
    "pydantic_ai": "pydantic-ai FallbackModel",
}
NOISE = 1.05
"""Factor on another figure from which on ours counts as behind."""
ALL_SERVED = 0.995
"""Share of callers that counts as all of them."""


@dataclass(frozen=True)
class Found:
    """All figures of a run."""

    calls: ByDesign
    """By `call_cost`: microseconds."""
    images: dict[str, ByDesign]
    """By `images`, for each load."""
    outages: dict[str, ByDesign]
    """By `outage`, for each case."""


@dataclass(frozen=True)
class Row:
    """One row of the table; less is better. A design without a figure has words, or no cell."""

    title: str
    cells: Mapping[str, float | str]
    why: str
    """Shown if another design is ahead."""

    @property
    def ahead(self) -> bool:
        """Whether no other figure is clearly lower than ours."""
        own = self.cells[OURS]
        return isinstance(own, float) and all(
            own <= each * NOISE for each in self.cells.values() if isinstance(each, float)
        )

    def cell(self, name: str) -> str:
        """Return a design's cell; in brackets, the multiple of our figure."""
        value, own = self.cells.get(name, ""), self.cells[OURS]
        if isinstance(value, str):
            return value
        if name == OURS:
            return f"**{number(value)}**"
        times = f" ({number(value / own)}x)" if isinstance(own, float) and own > 0 else ""
        return number(value) + times


GUARDS = "queue, pacing, deadline, breaker and events are in our figure; a bare chain has none"
TELEMETRY = "two spans, metrics and a log line a call"
HOP = "a thread wakes the shared event loop and waits for it"
CHECKED = (
    "we decode the image, check its type, size and completeness, and report; a router passes the "
    "vendor's base64 on unchecked"
)
SMALL = "queue, breaker and events, and the check of the image"
OFF_LOOP = "the image is decoded and checked in pieces, in a thread, so that the loop goes on"
NOISY = "the machine's own delays are in it"
MEMORY = "the image is kept beside its base64 for the caller"
HELD = "the allocator keeps it for the next ones"
LIMITS = (
    "a design without limits never waits for a slot or an images-per-minute place; and a breaker's "
    "probe is a request whose failure one caller waits for"
)
WAITED = "a design without a time limit waits for each image instead, for minutes"
LATER = (
    "the others send requests to Google all the time; we send a probe a minute, or fewer if probes "
    "take long: `IMAGE_GEN_BREAKER_RESET_TIMEOUT` makes the interval shorter, at more failed probes"
)
MODULES = "one SDK, and then settings, breaker, events and telemetry's API"

ONE = ("wall_ms", "cpu_ms", "stall_ms", "peak_mb")
EIGHT = ("wall_ms", "stall_ms", "peak_mb", "left_mb")
LOADS = {
    "small": ("a small image", ("first_s", "wall_ms", "cpu_ms")),
    "4K google": ("20 MB from Google", ONE),
    "4K google, 8": ("20 MB from Google, eight at once", EIGHT),
    "4K openai": ("20 MB from OpenAI", ONE),
    "4K openai, 8": ("20 MB from OpenAI, eight at once", EIGHT),
    "references": ("eight 2K references", ONE),
}
FIGURES = {
    "first_s": ("the first of a process, imports included, s of CPU", MODULES),
    "wall_ms": ("time, ms an image", OFF_LOOP),
    "cpu_ms": ("CPU, ms an image", CHECKED),
    "stall_ms": ("longest stall of the event loop, ms", NOISY),
    "peak_mb": ("additional memory, MB", MEMORY),
    "left_mb": ("of that still held without the images, MB", HELD),
}
RECOVERY = "18 to 42 minutes of overload"
"""The outage whose end is measured."""


def rows(found: Found) -> list[Row]:
    """Return every row, in order."""
    return [
        *_calls(found.calls),
        *_images(found.images),
        *_outages(found.outages),
    ]


def _calls(found: ByDesign) -> list[Row]:
    titles = {
        "ok": ("added to a call, µs of CPU", GUARDS),
        "fallback": ("added to a call that falls back, µs of CPU", GUARDS),
        "observed": ("added with OpenTelemetry's SDK and JSON log lines, µs of CPU", TELEMETRY),
        "hop": ("a call by `resilient_imagen.sync` instead of `await`, µs more", HOP),
    }
    return [
        Row(title, {name: each[key] for name, each in found.items() if key in each}, why)
        for key, (title, why) in titles.items()
    ]


def _images(found: dict[str, ByDesign]) -> list[Row]:
    made = []
    for load, (name, shown) in LOADS.items():
        for figure in shown:
            title, why = FIGURES[figure]
            if load == "small" and figure != "first_s":
                why = SMALL
            cells = {design: each[figure] for design, each in found[load].items()}
            made.append(Row(f"{name}: {title}", cells, why))
    return made


def _outages(found: dict[str, ByDesign]) -> list[Row]:
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
            Row(f"{outage}: time to an image, s", means, LIMITS),
            Row(f"{outage}: wasted requests", wasted, WAITED),
        ]
        if outage == RECOVERY:
            back = {name: each["recovery"] for name, each in designs.items()}
            made.append(Row(f"first image by Google after {outage}, s from its end", back, LATER))
    return made


def render(rows: Sequence[Row], where: str) -> str:
    """Return a Markdown table and the description of the run."""
    shown = [name for name in DESIGNS if any(name in row.cells for row in rows)]
    lines = [
        "| less is better | " + " | ".join(DESIGNS[name] for name in shown) + " | |",
        "|---|" + "---:|" * len(shown) + "---|",
    ]
    for row in rows:
        cells = " | ".join(row.cell(name) for name in shown)
        lines.append(f"| {row.title} | {cells} | {'' if row.ahead else row.why} |")
    return "\n".join([*lines, "", where])


def number(value: float) -> str:
    """Return two or three significant digits."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.2f}".rstrip("0").rstrip(".")


def put(text: str, table: str) -> str:
    """Return the guide's text with the table between its markers.

    Raises:
        ValueError: The text has no markers.
    """
    if START not in text or END not in text:
        raise ValueError(f"the file needs the lines {START} and {END}")
    head, rest = text.split(START, 1)
    return f"{head}{START}\n{table}\n{END}{rest.split(END, 1)[1]}"
