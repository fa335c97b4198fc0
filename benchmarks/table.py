"""From rows to the table in the guide, between two markers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
OURS = "ours"
DESIGNS = {
    "bare": "bare SDK",
    "guide": "retries, then fallback",
    "cooldown": "cooldown, simulated",
    OURS: "this library",
    "litellm": "litellm Router",
    "langchain": "langchain with_fallbacks",
    "pydantic_ai": "pydantic-ai FallbackModel",
}
NOISE = 1.05
"""Times as much as another before we say that we are behind."""


@dataclass(frozen=True)
class ResultRow:
    """One thing measured: less is better. A design without a picture to show says so in words."""

    title: str
    cells: Mapping[str, float | str]
    why: str
    """Shown where we are not ahead, or miss the goal."""
    goal: float | None = None
    scale: float = 1.0
    """Times as long as where the goal was set, that this machine takes for the same work."""

    @property
    def ahead(self) -> bool:
        """Whether nobody else's figure is clearly lower than ours."""
        own = self.cells[OURS]
        return isinstance(own, float) and all(
            own <= each * NOISE for each in self.cells.values() if isinstance(each, float)
        )


def render(rows: Sequence[ResultRow], where: str) -> str:
    """A Markdown table. In brackets: how many times our figure another one is."""
    shown = [name for name in DESIGNS if any(name in row.cells for row in rows)]
    lines = [
        "| less is better | " + " | ".join(DESIGNS[name] for name in shown) + " | |",
        "|---|" + "---:|" * len(shown) + "---|",
    ]
    for row in rows:
        cells = [_cell(row, name) for name in shown]
        lines.append(f"| {row.title} | " + " | ".join(cells) + f" | {_remark(row)} |")
    return "\n".join([*lines, "", where])


def _cell(row: ResultRow, name: str) -> str:
    value, own = row.cells.get(name, ""), row.cells[OURS]
    if isinstance(value, str):
        return value
    if name == OURS:
        return f"**{number(value)}**"
    times = f" ({number(value / own)}x)" if isinstance(own, float) and own > 0 else ""
    return number(value) + times


def _remark(row: ResultRow) -> str:
    own, goal, met = row.cells[OURS], "", True
    if row.goal is not None:
        met = isinstance(own, float) and own / row.scale <= row.goal
        goal = f"goal {number(row.goal)}: {'met' if met else 'missed'}"
        if isinstance(own, float) and row.scale != 1:
            goal += f" ({number(own / row.scale)} where it was set)"
    return "; ".join(filter(None, (goal, "" if met and row.ahead else row.why)))


def number(value: float) -> str:
    """Two or three digits, whatever the size."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.2f}".rstrip("0").rstrip(".")


def put(text: str, table: str) -> str:
    """README's text with the table between its markers, or at the end of ``## Measured``."""
    block = f"{START}\n{table}\n{END}"
    if START in text:
        head, rest = text.split(START, 1)
        return head + block + rest.split(END, 1)[1]
    section = re.search(r"^## Measured$.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if section is None:
        return f"{text.rstrip()}\n\n## Measured\n\n{block}\n"
    return f"{text[: section.end()].rstrip()}\n\n{block}\n\n{text[section.end() :]}"
