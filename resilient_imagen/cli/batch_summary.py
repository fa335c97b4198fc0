"""Summary of ``generate --from``: images, seconds and costs by provider, and what is missing."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from resilient_imagen.cli.terminal import Console, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from resilient_imagen.cli.batch_journal import Entry
    from resilient_imagen.cli.batch_prompts import PromptRow
    from resilient_imagen.snapshots import Snapshot
    from resilient_imagen.telemetry.events import AttemptEnded

__all__ = ["print_summary", "summarize"]

_LISTED: Final = 20
"""Failures that are listed one by one; the journal has them all."""


def summarize(
    rows: Sequence[PromptRow],
    entries: Sequence[Entry],
    requests: Sequence[AttemptEnded],
    bill: Snapshot,
) -> dict[str, Any]:
    """Return a summary as JSON-ready data.

    ``entries`` are outcomes of this run and of earlier ones, ``requests`` those of this run.
    """
    done = [entry for entry in entries if entry["status"] == "done"]
    made = [entry for entry in done if not entry.get("before")]
    failed = [entry for entry in entries if entry["status"] != "done"]
    images = Counter(entry["provider"] for entry in made for _ in entry["files"])
    expected = {row.id: len(row.names) for row in rows}
    return {
        "rows": len(rows),
        "made": len(made),
        "kept": len(done) - len(made),
        "missing_images": sum(expected[each["id"]] - len(each["files"]) for each in made),
        "failed": [
            {key: each[key] for key in ("id", "line", "reason", "error")} for each in failed
        ],
        "left": len(rows) - len(entries),
        "providers": {
            name: {"images": images[name], **_totals([r for r in requests if r.provider == name])}
            for name in sorted({request.provider for request in requests})
        },
        "fallbacks": Counter(each["fallback_reason"] for each in made if each["fallback_reason"]),
        "cost_usd": bill["cost_usd"],
        "maybe_billed": bill["maybe_billed"],
    }


def _totals(requests: Sequence[AttemptEnded]) -> dict[str, float | None]:
    """Return seconds of requests that delivered, without queueing, and the cost of all."""
    seconds = [each.latency_s for each in requests if each.reason is each.error_type is None]
    costs = [each.usage["cost_usd"] or 0.0 for each in requests if each.usage]
    return {
        "median_s": round(median(seconds), 3) if seconds else None,
        "max_s": round(max(seconds), 3) if seconds else None,
        "cost_usd": round(sum(costs), 6),
    }


def print_summary(
    summary: Mapping[str, Any], folder: Path, stopped: str | None, *, charged: bool
) -> None:
    """Print a summary; ``charged`` is False if an emulator served the requests."""
    table = Table("provider", box=None)
    for title in ("images", "median s", "longest s", "cost" if charged else "cost if real"):
        table.add_column(title, justify="right")
    for name, each in summary["providers"].items():
        times = ["-" if s is None else f"{s:.1f}" for s in (each["median_s"], each["max_s"])]
        table.add_row(name, str(each["images"]), *times, f"${each['cost_usd']:.4f}")
    failed, maybe = summary["failed"], summary["maybe_billed"]
    lines = [f"{count} by fallback: {reason}" for reason, count in summary["fallbacks"].items()]
    lines += [f"no image for {e['id']} (line {e['line']}): {e['error']}" for e in failed[:_LISTED]]
    if len(failed) > _LISTED:
        lines.append(f"and {len(failed) - _LISTED} more: see results.jsonl")
    if missing := summary["missing_images"]:
        lines.append(f"missing images: {missing} (see results.jsonl)")
    if maybe["requests"]:
        more = " and more" if maybe["unpriced"] else ""
        lines.append(
            f"{maybe['requests']} requests without an image may be billed as well: "
            f"${maybe['cost_usd']:.4f}{more}"
        )
    lines.append(
        f"{folder}: {summary['made']} made, {summary['kept']} made before, "
        f"{len(failed)} failed, {summary['left']} left"
    )
    if stopped:
        more = "; run it again to continue" if failed or summary["left"] else ""
        lines.append(f"stopped: {stopped}{more}")
    console = Console(soft_wrap=True)
    if summary["providers"]:
        console.print(table)
    for line in lines:
        console.print(one_line(line))
