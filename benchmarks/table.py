"""Results as Markdown tables: a row per figure, a column per design, the multiple of ours."""

from __future__ import annotations

from collections.abc import Mapping

OURS = "ours"
DESIGNS = {
    "bare": "bare SDK",
    "retries": "retries, then fallback, simulated",
    "cooldown": "cooldown, simulated",
    OURS: "this library",
    "tenacity": "tenacity + pybreaker",
    "pydantic_ai": "pydantic-ai FallbackModel",
    "litellm": "litellm Router",
}
NOISE = 1.05
"""Factor by which another figure has to be lower for ours to count as behind."""

Cells = dict[str, float | str]
"""A figure by design, or words if there is none."""
Rows = dict[str, Cells]
"""Cells by the title of a row; less is better."""


def result_rows(found: Mapping[str, Mapping[str, float | str]], titles: Mapping[str, str]) -> Rows:
    """Return a row for each title, from figures by design; a design may lack some of them."""
    return {
        title: {design: each[figure] for design, each in found.items() if figure in each}
        for figure, title in titles.items()
    }


def markdown(rows: Rows) -> str:
    """Return the table; rows in which another design is ahead are marked."""
    designs = [name for name in DESIGNS if any(name in cells for cells in rows.values())]
    lines = [
        "| less is better | " + " | ".join(DESIGNS[name] for name in designs) + " |",
        "|---" + "|---:" * len(designs) + "|",
    ]
    for title, cells in rows.items():
        mark = "*behind:* " if is_behind(cells) else ""
        shown = " | ".join(cell(cells, name) for name in designs)
        lines.append(f"| {mark}{title} | {shown} |")
    return "\n".join(lines)


def is_behind(cells: Cells) -> bool:
    """Return whether another design's figure is clearly lower than ours."""
    own = cells[OURS]
    others = [value for value in cells.values() if isinstance(value, float)]
    return isinstance(own, float) and own > NOISE * min(others)


def cell(cells: Cells, design: str) -> str:
    """Return a design's figure and, in brackets, the multiple of ours."""
    value, own = cells.get(design, ""), cells[OURS]
    if isinstance(value, str):
        return value
    if design == OURS:
        return f"**{number(value)}**"
    return number(value) + (f" ({number(value / own)}x)" if isinstance(own, float) and own else "")


def number(value: float) -> str:
    """Return a figure in three digits, or more before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
