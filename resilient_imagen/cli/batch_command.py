"""``generate --from``: the batch on a terminal, with its progress, its signals and its summary."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from resilient_imagen.cli.batch import Batch
from resilient_imagen.cli.client_session import open_client
from resilient_imagen.cli.command_errors import FAILED, warn
from resilient_imagen.cli.journal import DONE, Journal
from resilient_imagen.cli.prompts import read_prompts
from resilient_imagen.cli.shutdown import ShutdownSignals
from resilient_imagen.cli.summary import Spent, show_summary, summarize
from resilient_imagen.cli.terminal import Console, echo_json, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from resilient_imagen import ImageClient
    from resilient_imagen.cli.image_spec import ImageSpec
    from resilient_imagen.cli.journal import Entry
    from resilient_imagen.cli.prompts import PromptRow
    from resilient_imagen.emulator import Emulator

__all__ = ["run_many"]

_USUAL: Final = {
    "strict_references": True,  # better no picture than one paid for without its references
    "when_all_open": "wait",  # an outage is waited out; rows do not run through it and all fail
}


async def run_many(
    prompts: Path,
    folder: Path,
    defaults: ImageSpec,
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
        SystemExit: Some rows have no picture: 1; or a signal stopped it: 128 and its number.
    """
    rows = await asyncio.to_thread(read_prompts, prompts, defaults)  # it reads pictures, too
    spent = Spent()
    session = open_client(given, _USUAL, emulator=emulator, sinks=[spent], model=defaults.model)
    async with session as client:
        with Journal(folder) as journal:
            settled = await asyncio.to_thread(_settled, journal, rows)
            with _progress(len(rows), len(settled)) as tell:
                batch = Batch([row for row in rows if row.id not in settled], journal, tell)
                stopping = ShutdownSignals(batch)
                with stopping.heard():
                    await batch.run(client, _at_once(client))
        bill = client.snapshot()
    summary = summarize(rows, list(settled.values()), batch, spent, bill)
    if as_json:
        echo_json(summary)
    else:
        show_summary(summary, folder, charged=emulator is None)
    if stopping.code is not None:
        raise SystemExit(stopping.code)
    if summary["failed"] or summary["left"]:
        raise SystemExit(FAILED)


def _settled(journal: Journal, rows: Sequence[PromptRow]) -> dict[str, Entry]:
    return {row.id: entry for row in rows if (entry := journal.settled(row))}


def _at_once(client: ImageClient) -> int:
    """Rows at work: enough to keep every provider busy, few enough to hold their references."""
    providers = {route.partition(":")[0] for route in client.breakers}
    return client.settings.max_concurrent * len(providers)


@contextlib.contextmanager
def _progress(total: int, settled: int) -> Iterator[Any]:
    """A bar on a terminal; a line a row where output is kept. Both on standard error."""
    console = _Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    task = bar.add_task("images", total=total, completed=settled)

    def tell(row: PromptRow, entry: Entry) -> None:
        with contextlib.suppress(OSError):
            if entry["status"] != DONE:
                console.print(f"{row.id}: {one_line(entry['error'])}", style="red")
            elif not console.is_terminal:
                warn(f"{row.id}: {entry['provider']}, {entry['latency_s']:.1f} s")
            bar.advance(task)

    with bar if console.is_terminal else contextlib.nullcontext():
        yield tell


class _Console(Console):
    """Goes on in silence when nobody reads it any more: pictures are under way."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
