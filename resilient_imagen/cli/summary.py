"""What came of a batch: for people, and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from resilient_imagen.cli.journal import DONE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from resilient_imagen.cli.batch import Batch
    from resilient_imagen.cli.journal import Entry
    from resilient_imagen.cli.prompts import Row

__all__ = ["show_summary", "summarize"]

_LISTED: Final = 20
"""Failures shown one by one; the journal has them all."""


def summarize(
    rows: Sequence[Row],
    settled: Sequence[Entry],
    batch: Batch,
    seconds: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Everything about a run that ended, as plain JSON.

    Args:
        rows: All that the file asks for.
        settled: Entries of earlier runs that left nothing to do.
        batch: This run.
        seconds: What each delivered image took its provider, by provider.
    """
    made = [entry for entry in batch.entries if entry["status"] == DONE]
    kept = [entry for entry in settled if entry["status"] == DONE]
    failed = [entry for entry in (*settled, *batch.entries) if entry["status"] != DONE]
    providers = {
        name: _of_provider([entry for entry in made if entry["provider"] == name], seconds[name])
        for name in sorted({entry["provider"] for entry in made})
    }
    return {
        "rows": len(rows),
        "made": len(made),
        "kept": len(kept),
        "failed": [
            {key: each[key] for key in ("id", "line", "reason", "error")} for each in failed
        ],
        "left": len(rows) - len(made) - len(kept) - len(failed),
        "stopped": batch.stopped,
        "providers": providers,
        "fallbacks": Counter(each["fallback_reason"] for each in made if each["fallback_reason"]),
        "cost_usd": round(sum(each["cost_usd"] for each in providers.values()), 6),
    }


def _of_provider(made: Sequence[Entry], seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "images": len(made),
        "median_s": round(median(seconds), 3),
        "max_s": round(max(seconds), 3),
        "cost_usd": round(sum(each["usage"]["cost_usd"] or 0.0 for each in made), 6),
    }


def show_summary(summary: Mapping[str, Any], folder: Path, *, charged: bool) -> None:
    """Print it; ``charged`` is False when the prices are only what it would have cost."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if summary["providers"]:
        console.print(_table(summary["providers"], "cost" if charged else "cost, were it real"))
    for reason, count in summary["fallbacks"].items():
        console.print(f"{count} by fallback: {reason}")
    for each in summary["failed"][:_LISTED]:
        console.print(f"no image for {each['id']} (line {each['line']}): {each['error']}")
    if len(summary["failed"]) > _LISTED:
        console.print(f"and {len(summary['failed']) - _LISTED} more: see results.jsonl")
    console.print(
        f"{folder}: {summary['made']} made, {summary['kept']} there before, "
        f"{len(summary['failed'])} failed, {summary['left']} left"
    )
    if summary["stopped"]:
        console.print(f"stopped: {summary['stopped']}; run it again to go on")


def _table(providers: Mapping[str, Any], cost: str) -> Table:
    table = Table("provider", box=None)
    for title in ("images", "median s", "longest s", cost):
        table.add_column(title, justify="right")
    for name, each in providers.items():
        table.add_row(
            name,
            str(each["images"]),
            f"{each['median_s']:.1f}",
            f"{each['max_s']:.1f}",
            f"${each['cost_usd']:.4f}",
        )
    return table
