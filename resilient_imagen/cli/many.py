"""``generate --from``: the batch on a terminal, with its progress, its signals and its summary."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from resilient_imagen.cli.batch import Batch
from resilient_imagen.cli.guard import FAILED, INTERRUPTED, warn
from resilient_imagen.cli.journal import DONE, Journal
from resilient_imagen.cli.prompts import read_prompts
from resilient_imagen.cli.session import open_client
from resilient_imagen.cli.summary import show_summary, summarize
from resilient_imagen.telemetry.events import AttemptEnded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from resilient_imagen import ImageClient
    from resilient_imagen.cli.journal import Entry
    from resilient_imagen.cli.order import Order
    from resilient_imagen.cli.prompts import Row
    from resilient_imagen.emulator import Emulator
    from resilient_imagen.telemetry.events import Event

__all__ = ["run_many"]

_USUAL: Final = {
    "strict_references": True,  # better no picture than one paid for without its references
    "when_all_open": "wait",  # an outage is waited out; rows do not run through it and all fail
}
_CTRL_C: Final = "Ctrl-C"


async def run_many(
    prompts: Path,
    folder: Path,
    defaults: Order,
    given: Mapping[str, Any],
    *,
    emulator: Emulator | None,
    as_json: bool,
) -> None:
    """Make what the file asks for and is not there yet; say what came of it.

    Args:
        prompts: The file.
        folder: Where pictures and journal go.
        defaults: What a row does not say.
        given: Settings of the command line.
        emulator: Used instead of the vendors.
        as_json: Print the summary for programs.

    Raises:
        CommandError: The file is wrong, there is no key, or another run is at work there.
        OSError: Something cannot be read or written.
        SystemExit: Some rows have no picture: 1, or 130 after Ctrl-C.
    """
    rows = read_prompts(prompts, defaults)
    times = _Times()
    async with open_client(given, _USUAL, emulator=emulator, sinks=[times]) as client:
        with Journal(folder) as journal:
            settled = {row.id: entry for row in rows if (entry := journal.settled(row))}
            with _progress(len(rows), len(settled)) as tell:
                batch = Batch([row for row in rows if row.id not in settled], journal, tell)
                with _stopping(batch):
                    await batch.run(client, _at_once(client))
    summary = summarize(rows, list(settled.values()), batch, times.by_provider)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        show_summary(summary, folder, charged=emulator is None)
    if summary["failed"] or summary["left"]:
        raise SystemExit(INTERRUPTED if batch.stopped == _CTRL_C else FAILED)


def _at_once(client: ImageClient) -> int:
    """Rows at work: enough to keep every provider busy, few enough to hold their references."""
    providers = {route["provider"] for route in client.snapshot()["routes"]}
    return client.settings.max_concurrent * len(providers)


class _Times:
    """Seconds that delivering requests took, by provider; queueing is no part of them."""

    inline = True

    def __init__(self) -> None:
        self.by_provider: dict[str, list[float]] = {}

    def handle(self, event: Event) -> None:
        if isinstance(event, AttemptEnded) and event.usage is not None:
            self.by_provider.setdefault(event.provider, []).append(event.latency_s)


@contextlib.contextmanager
def _stopping(batch: Batch) -> Iterator[None]:
    """Ctrl-C lets what was sent come in; a second one waits for nothing."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        again = batch.stopped == _CTRL_C
        if not again:
            warn("finishing what was sent, as it is paid for; Ctrl-C again drops it")
        batch.stop(_CTRL_C, at_once=again)

    try:
        loop.add_signal_handler(signal.SIGINT, on_signal)
    except (NotImplementedError, RuntimeError):  # Windows, or not the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextlib.contextmanager
def _progress(total: int, settled: int) -> Iterator[Any]:
    """A bar on a terminal; a line a row where output is kept. Both on standard error."""
    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    task = bar.add_task("images", total=total, completed=settled)

    def tell(row: Row, entry: Entry) -> None:
        if entry["status"] != DONE:
            console.print(f"{row.id}: {entry['error']}", style="red", markup=False)
        elif not console.is_terminal:
            warn(f"{row.id}: {entry['provider']}, {entry['latency_s']:.1f} s")
        bar.advance(task)

    with bar if console.is_terminal else contextlib.nullcontext():
        yield tell
