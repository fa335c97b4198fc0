"""``generate --from``: request the images of a prompt file, a few at a time, and save each one."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen import ImageGenerationError
from resilient_imagen.circuitbreaker.open_period import is_fatal
from resilient_imagen.cli.batch_journal import open_journal
from resilient_imagen.cli.batch_prompts import read_prompts
from resilient_imagen.cli.client_session import open_client
from resilient_imagen.cli.command_errors import FAILED, advised, route_errors, system_words, warn
from resilient_imagen.cli.terminal import echo, echo_json, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from resilient_imagen import ImageClient
    from resilient_imagen.cli.batch_journal import Entry, Journal
    from resilient_imagen.cli.batch_prompts import PromptRow
    from resilient_imagen.cli.image_spec import ImageSpec
    from resilient_imagen.emulator import Emulator

__all__ = ["Batch", "run_batch"]

_USUAL: Final = {
    "strict_references": True,  # an image without its references would be paid for in vain
    "when_all_open": "wait",  # rows wait for the end of an outage instead of failing in it
}
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_batch(
    prompts: Path,
    folder: Path,
    defaults: ImageSpec,
    given: Mapping[str, Any],
    *,
    emulator: Emulator | None,
    as_json: bool,
) -> None:
    """Request the images that the folder does not have yet, and print a summary.

    ``defaults`` has the values of keys that a row does not have, ``given`` the settings of the
    command line.

    Raises:
        CommandError: The file is wrong, there is no key, or another run uses the folder.
        SystemExit: 1 if rows have no image; 128 and the signal's number if one stopped the run.
    """
    rows = await asyncio.to_thread(read_prompts, prompts, defaults)  # it reads references, too
    async with open_client(given, _USUAL, emulator=emulator, model=defaults.model) as client:
        with open_journal(folder) as journal:
            before = {row.id: entry for row in rows if (entry := journal.settled(row))}
            batch = Batch(client, journal)
            await batch.run([row for row in rows if row.id not in before])
        bill = client.snapshot()
    made = [entry for entry in batch.entries if entry["status"] == "done"]
    ended = Counter(entry["status"] for entry in [*before.values(), *batch.entries])
    summary = {
        "rows": len(rows),
        "made": len(made),
        "kept": ended["done"] - len(made),
        "failed": ended["failed"],
        "left": len(rows) - ended.total(),
        "stopped": batch.stopped,
        "images": Counter(entry["provider"] for entry in made for _ in entry["files"]),
        "cost_usd": bill["cost_usd"],
        "maybe_billed": bill["maybe_billed"],
    }
    if as_json:
        echo_json(summary)
    else:
        _print_summary(summary, folder, charged=emulator is None)
    if batch.signal is not None:
        raise SystemExit(128 + batch.signal)
    if ended["done"] < len(rows):
        raise SystemExit(FAILED)


class Batch:
    """One run: its rows, and what stopped it.

    After a stop no row begins, and every circuit is forced open: requests in flight are paid for
    and go on, but no further one is sent. If a row of several images is under way, the circuits
    stay as they are, because the row would end with too few images.
    """

    def __init__(self, client: ImageClient, journal: Journal) -> None:
        self._client = client
        self._journal = journal
        # Enough to keep every route busy; more would only hold references in memory.
        self._slots = asyncio.Semaphore(client.settings.max_concurrent * len(client.breakers))
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._begun: dict[str, PromptRow] = {}
        """Rows for which a request was sent."""
        self.entries: list[Entry] = []
        """Outcomes in the order in which the rows ended."""
        self.stopped: str | None = None
        """Why rows are left for another run."""
        self.signal: signal.Signals | None = None
        """The signal that stopped the run."""

    async def run(self, rows: Sequence[PromptRow]) -> None:
        """Request the images of all rows, until all ended or something stops the run."""
        loop = asyncio.get_running_loop()
        # With nohup, the process was started to ignore SIGHUP.
        handled = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        for each in handled:
            loop.add_signal_handler(each, self._on_signal, each)
        self._tasks = {row.id: loop.create_task(self._make(row)) for row in rows}
        outcomes = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for each in handled:
            loop.remove_signal_handler(each)
        for bug in outcomes:
            if isinstance(bug, Exception):
                raise bug

    async def _make(self, row: PromptRow) -> None:
        async with self._slots:
            try:
                entry = await self._outcome(row)
            except OSError as error:  # an image or the journal cannot be written
                self._stop(system_words(error))
            except Exception:
                self._stop("an internal error")
                raise
            else:
                self.entries.append(entry)
                warn(f"{len(self.entries)}/{len(self._tasks)} {_described(row, entry)}")

    async def _outcome(self, row: PromptRow) -> Entry:
        try:
            begin = partial(self._begun.setdefault, row.id, row)
            result = await row.spec.place(self._client, on_start=begin)
        except ImageGenerationError as error:
            if self._is_fatal(error):
                self._stop(advised(str(error), error))
            return self._journal.failed(row, error)
        return self._journal.done(row, result)  # not in a thread: nothing can cancel it here

    def _is_fatal(self, error: ImageGenerationError) -> bool:
        """Return whether no route can serve further rows, because of its key, quota or model."""
        breakers = self._client.breakers.items()
        opened_by = {route: breaker.snapshot()["why"] for route, breaker in breakers}
        return all(
            is_fatal(each.reason) or is_fatal(opened_by.get(f"{each.provider}:{each.model}"))
            for each in route_errors(error)
        )

    def _stop(self, why: str) -> int:
        """Begin no more rows and send no more requests; return the number of rows under way."""
        self.stopped = self.stopped or why
        for row_id, task in self._tasks.items():
            if row_id not in self._begun:
                task.cancel()
        under_way = [row for row in self._begun.values() if not self._tasks[row.id].done()]
        if all(len(row.names) == 1 for row in under_way):
            for breaker in self._client.breakers.values():
                breaker.force_open = True
        return len(under_way)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.signal is None:
            self.signal = number
            calls = self._stop(number.name)
            warn(
                f"finishing what was sent, as it is paid for: {calls} call{'s' * (calls != 1)} "
                "under way; Ctrl-C or SIGTERM now drops it"
            )
        elif number != signal.SIGHUP:  # a terminal that closes sends it more than once
            for task in self._tasks.values():
                task.cancel()


def _described(row: PromptRow, entry: Entry) -> str:
    if entry["status"] == "failed":
        return f"{row.id}: {entry['error']}"
    images, requested = len(entry["files"]), len(row.names)
    missing = f", {images} of {requested} images" if images < requested else ""
    return f"{row.id}: {entry['provider']}, {entry['latency_s']:.1f} s{missing}"


def _print_summary(summary: Mapping[str, Any], folder: Path, *, charged: bool) -> None:
    """Print a summary; ``charged`` is False if an emulator served the requests."""
    cost = f"${summary['cost_usd']:.4f}"
    if (maybe := summary["maybe_billed"])["requests"]:
        cost += f", and perhaps ${maybe['cost_usd']:.4f} for requests without an image"
    made_by = (f"{count} by {name}" for name, count in summary["images"].items())
    echo(f"images    {', '.join(made_by) or 'none'}")
    echo(f"cost      {cost if charged else f'nothing: emulated (else {cost})'}")
    echo(
        one_line(
            f"{folder}: {summary['made']} made, {summary['kept']} made before, "
            f"{summary['failed']} failed, {summary['left']} left; see results.jsonl"
        )
    )
    if stopped := summary["stopped"]:
        echo(one_line(f"stopped: {stopped}; run it again to continue"))
