"""What came of a batch: for people, and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from resilient_imagen.cli.journal import DONE
from resilient_imagen.cli.terminal import Console, one_line
from resilient_imagen.telemetry.events import AttemptEnded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from resilient_imagen.cli.batch import Batch
    from resilient_imagen.cli.journal import Entry
    from resilient_imagen.cli.prompts import PromptRow
    from resilient_imagen.telemetry.events import Event

__all__ = ["Spent", "show_summary", "summarize"]

_UNKNOWN: Final = "unknown"
"""Who made a picture that a crash left without its line."""
_LISTED: Final = 20
"""Failures shown one by one; the journal has them all."""


class Spent:
    """Requests and cost of this run by provider, failed ones included; a sink of the client."""

    inline = True

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        """Of each request that delivered; queueing is no part of them."""
        self.cost_usd: dict[str, float] = {}

    def handle(self, event: Event) -> None:
        """Take note of a request that ended."""
        if not isinstance(event, AttemptEnded):
            return
        if event.reason is None and event.error_type is None:
            self.seconds.setdefault(event.provider, []).append(event.latency_s)
        if event.usage is not None and (cost := event.usage["cost_usd"]):
            self.cost_usd[event.provider] = self.cost_usd.get(event.provider, 0.0) + cost


def summarize(
    rows: Sequence[PromptRow],
    settled: Sequence[Entry],
    batch: Batch,
    spent: Spent,
    bill: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything about a run that ended, as plain JSON.

    Args:
        rows: All that the file asks for.
        settled: Entries that left nothing to do.
        batch: This run.
        spent: What this run took, by provider.
        bill: The client's snapshot, for the totals.
    """
    made = [entry for entry in batch.entries if entry["status"] == DONE]
    kept = [entry for entry in settled if entry["status"] == DONE]
    failed = [entry for entry in (*settled, *batch.entries) if entry["status"] != DONE]
    images: Counter[str] = Counter()
    for entry in made:
        images[entry["provider"]] += _images(entry)
    requested = {row.id: row.order.options.get("n") or 1 for row in rows}
    return {
        "rows": len(rows),
        "made": len(made),
        "kept": len(kept),
        "missing_images": sum(requested[entry["id"]] - _images(entry) for entry in made),
        "failed": [
            {key: each[key] for key in ("id", "line", "reason", "error")} for each in failed
        ],
        "left": len(rows) - len(made) - len(kept) - len(failed),
        "stopped": batch.stopped,
        "providers": {
            name: {
                "images": images[name],
                **_times(spent.seconds.get(name, [])),
                "cost_usd": round(spent.cost_usd.get(name, 0.0), 6),
            }
            for name in sorted({*images, *spent.cost_usd})
        },
        "fallbacks": Counter(each["fallback_reason"] for each in made if each["fallback_reason"]),
        "cost_usd": bill["cost_usd"],
        "maybe_billed": bill["maybe_billed"],
        "before": {
            "providers": Counter(entry.get("provider", _UNKNOWN) for entry in kept),
            "cost_usd": round(sum(_price(entry) for entry in kept), 6),
        },
    }


def _times(seconds: Sequence[float]) -> dict[str, float | None]:
    return {
        "median_s": round(median(seconds), 3) if seconds else None,
        "max_s": round(max(seconds), 3) if seconds else None,
    }


def _images(entry: Entry) -> int:
    return 1 + len(entry.get("more", ()))


def _price(entry: Entry) -> float:
    return float(entry.get("usage", {}).get("cost_usd") or 0.0)


def show_summary(summary: Mapping[str, Any], folder: Path, *, charged: bool) -> None:
    """Print it; ``charged`` is False when the prices are only what it would have cost."""
    console = Console(soft_wrap=True)
    if summary["providers"]:
        console.print(_table(summary["providers"], "cost" if charged else "cost, were it real"))
    for reason, count in summary["fallbacks"].items():
        console.print(f"{count} by fallback: {reason}")
    for each in summary["failed"][:_LISTED]:
        console.print(f"no image for {each['id']} (line {each['line']}): {one_line(each['error'])}")
    if len(summary["failed"]) > _LISTED:
        console.print(f"and {len(summary['failed']) - _LISTED} more: see results.jsonl")
    if missing := summary["missing_images"]:
        console.print(f"missing pictures: {missing} (see results.jsonl)")
    if (maybe := summary["maybe_billed"])["requests"]:
        console.print(
            f"{maybe['requests']} requests without a picture may be billed as well: "
            f"${maybe['cost_usd']:.4f}{' and more' if maybe['unpriced'] else ''}"
        )
    if summary["kept"]:
        console.print(_before(summary["before"], charged=charged))
    console.print(
        f"{one_line(str(folder))}: {summary['made']} made, {summary['kept']} there before, "
        f"{len(summary['failed'])} failed, {summary['left']} left"
    )
    if summary["stopped"]:
        more = "; run it again to go on" if summary["left"] or summary["failed"] else ""
        console.print(f"stopped: {one_line(summary['stopped'])}{more}")


def _before(before: Mapping[str, Any], *, charged: bool) -> str:
    by = ", ".join(f"{count} by {name}" for name, count in sorted(before["providers"].items()))
    price = "which cost" if charged else "would have cost"
    return f"there before, not counted above: {by}, {price} ${before['cost_usd']:.4f}"


def _table(providers: Mapping[str, Any], cost: str) -> Table:
    table = Table("provider", box=None)
    for title in ("images", "median s", "longest s", cost):
        table.add_column(title, justify="right")
    for name, each in providers.items():
        table.add_row(
            name,
            str(each["images"]),
            _seconds(each["median_s"]),
            _seconds(each["max_s"]),
            f"${each['cost_usd']:.4f}",
        )
    return table


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
