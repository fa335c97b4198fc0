"""``generate --from``: request the images of a prompt file, a few at a time, and save each one."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen import ImageClient, ImageGenerationError, ImageResult
from resilient_imagen.circuitbreaker.open_period import is_fatal
from resilient_imagen.cli.batch_journal import Entry, Journal, open_journal
from resilient_imagen.cli.batch_prompts import PromptRow, read_prompts
from resilient_imagen.cli.client_session import open_client
from resilient_imagen.cli.command_errors import FAILED, advised, line_and_code, route_errors, warn
from resilient_imagen.cli.terminal import echo, echo_json, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from resilient_imagen.cli.image_spec import ImageSpec
    from resilient_imagen.emulator import Emulator

__all__ = ["Batch", "run_batch"]

_USUAL: Final = {
    "strict_references": True,  # an image without its references would be paid for in vain
    "when_all_open": "wait",  # rows wait for the end of an outage instead of failing in it
}
_SIGNALS: Final = {each.name: each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


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
            outcomes = {row.id: journal.settled(row) for row in rows}
            batch = Batch(client, journal)
            await batch.run([row for row in rows if outcomes[row.id] is None])
        bill = client.snapshot()
    outcomes |= {each["id"]: "made" if "files" in each else "failed" for each in batch.entries}
    counts = Counter(outcomes.values())
    images = [each["provider"] for each in batch.entries for _ in each.get("files", ())]
    summary = {
        "rows": len(rows),
        **{outcome: counts[outcome] for outcome in ("made", "kept", "failed")},
        "left": counts[None],
        "stopped": batch.stopped,
        "images": Counter(images),
        "cost_usd": bill["cost_usd"],
        "maybe_billed": bill["maybe_billed"],
    }
    if as_json:
        echo_json(summary)
    else:
        _print_summary(summary, folder, emulated=emulator is not None)
    if batch.stopped in _SIGNALS:
        raise SystemExit(128 + _SIGNALS[batch.stopped])
    if summary["failed"] or summary["left"]:
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
        """Why rows are left for another run: an error, or the name of a signal."""

    async def run(self, rows: Sequence[PromptRow]) -> None:
        """Request the images of all rows, until all ended or something stops the run."""
        loop = asyncio.get_running_loop()
        for name, number in _SIGNALS.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                loop.add_signal_handler(number, self._on_signal, name)
        self._tasks = {row.id: loop.create_task(self._make(row)) for row in rows}
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)  # some are cancelled
        for number in _SIGNALS.values():
            loop.remove_signal_handler(number)

    async def _make(self, row: PromptRow) -> None:
        async with self._slots:
            try:
                outcome = await self._request(row)
                entry = self._journal.record(row, outcome)  # not in a thread: cannot be cancelled
            except Exception as error:  # noqa: BLE001 - a file cannot be written, or it is a bug
                line = line_and_code(error)[0]
                if self.stopped is not None:
                    warn(f"{row.id}: not recorded: {line}")
                self._stop(line)
            else:
                self.entries.append(entry)
                images = ", ".join(entry.get("files", [row.id]))
                ended = entry.get("error") or f"{entry['provider']}, {entry['latency_s']:.1f} s"
                warn(f"{len(self.entries)}/{len(self._tasks)} {images}: {ended}")

    async def _request(self, row: PromptRow) -> ImageResult | ImageGenerationError:
        begin = partial(self._begun.setdefault, row.id, row)
        try:
            return await row.spec.place(self._client, on_start=begin)
        except ImageGenerationError as error:
            if self._is_fatal(error):
                self._stop(advised(str(error), error))
            return error

    def _is_fatal(self, error: ImageGenerationError) -> bool:
        """Return whether no route can serve further rows, because of its key, quota or model."""
        opened_by = {route: each.snapshot()["why"] for route, each in self._client.breakers.items()}
        return all(
            is_fatal(each.reason) or is_fatal(opened_by.get(f"{each.provider}:{each.model}"))
            for each in route_errors(error)
        )

    def _stop(self, why: str) -> None:
        """Begin no more rows and send no more requests."""
        if self.stopped is not None:
            return
        self.stopped = why
        for row_id, task in self._tasks.items():
            if row_id not in self._begun:
                task.cancel()
        ending = asyncio.current_task()  # of the row that causes the stop; None for a signal
        begun = [(row, self._tasks[row.id]) for row in self._begun.values()]
        calls = [row for row, task in begun if task is not ending and not task.done()]
        if all(len(row.names) == 1 for row in calls):
            for breaker in self._client.breakers.values():
                breaker.force_open = True
        warn(f"stopping: {why}; finishing sent calls: {len(calls)}; Ctrl-C or SIGTERM drops them")

    def _on_signal(self, name: str) -> None:
        if self.stopped is None:
            self._stop(name)
        elif name != "SIGHUP":  # a terminal that closes sends it more than once
            for task in self._tasks.values():
                task.cancel()


def _print_summary(summary: Mapping[str, Any], folder: Path, *, emulated: bool) -> None:
    cost = f"${summary['cost_usd']:.4f}"
    if (maybe := summary["maybe_billed"])["requests"]:
        cost += f", and perhaps ${maybe['cost_usd']:.4f} for requests without an image"
    made_by = (f"{count} by {name}" for name, count in summary["images"].items())
    echo(f"images    {', '.join(made_by) or 'none'}")
    echo(f"cost      {f'nothing: emulated (else {cost})' if emulated else cost}")
    counts = ", ".join(f"{summary[name]} {name}" for name in ("made", "kept", "failed", "left"))
    echo(one_line(f"{folder}: {counts}; see results.jsonl"))
