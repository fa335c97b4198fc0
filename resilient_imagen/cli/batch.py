"""``generate --from``: request the images of a prompt file, a few at a time, and save each one."""

from __future__ import annotations

import asyncio
import signal
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from resilient_imagen import ImageGenerationError, Reason
from resilient_imagen.cli.batch_journal import Journal
from resilient_imagen.cli.batch_prompts import read_prompts
from resilient_imagen.cli.batch_summary import print_summary, summarize
from resilient_imagen.cli.client_session import open_client
from resilient_imagen.cli.command_errors import FAILED, advised, system_words, warn
from resilient_imagen.cli.terminal import Console, echo_json, one_line
from resilient_imagen.telemetry.recording_sink import RecordingSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from resilient_imagen import ImageClient
    from resilient_imagen.cli.batch_journal import Entry
    from resilient_imagen.cli.batch_prompts import PromptRow
    from resilient_imagen.cli.image_spec import ImageSpec
    from resilient_imagen.emulator import Emulator

__all__ = ["Batch", "run_batch"]

_USUAL: Final = {
    "strict_references": True,  # an image without its references would be paid for in vain
    "when_all_open": "wait",  # rows wait for the end of an outage instead of failing in it
}
_HOPELESS: Final = frozenset(
    {Reason.UNAUTHENTICATED, Reason.FORBIDDEN, Reason.MODEL_NOT_FOUND, Reason.QUOTA_EXHAUSTED}
)
"""Reasons for which every further row would fail."""
_SIGNALS: Final = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}


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
    events = RecordingSink()
    session = open_client(given, _USUAL, emulator=emulator, sinks=[events], model=defaults.model)
    async with session as client:
        with closing(Journal(folder)) as journal:
            before = {row.id: entry for row in rows if (entry := journal.settled(row))}
            with _progress(len(rows), len(before)) as report:
                batch = Batch(journal, report)
                await batch.run(client, [row for row in rows if row.id not in before])
        bill = client.snapshot()
    summary = summarize(rows, [*before.values(), *batch.entries], events.attempts, bill)
    if as_json:
        echo_json({**summary, "stopped": batch.stopped})
    else:
        print_summary(summary, folder, batch.stopped, charged=emulator is None)
    if batch.signal is not None:
        raise SystemExit(128 + signal.Signals[batch.signal])
    if summary["failed"] or summary["left"]:
        raise SystemExit(FAILED)


class Batch:
    """One run: its rows, and what stopped it.

    A stop starts no further requests. Those that were sent are paid for, so the run waits for them.
    ``report`` is called with the outcome of each row.
    """

    def __init__(self, journal: Journal, report: Callable[[Entry], None]) -> None:
        self._journal = journal
        self._report = report
        self._tasks: list[asyncio.Task[None]] = []
        self._unsent: set[asyncio.Task[None] | None] = set()
        self._bug: Exception | None = None
        self.entries: list[Entry] = []
        """Outcomes in the order in which the rows ended."""
        self.stopped: str | None = None
        """Why rows are left for another run."""
        self.signal: str | None = None
        """The signal that stopped the run."""

    async def run(self, client: ImageClient, rows: Sequence[PromptRow]) -> None:
        """Request the images of all rows, until all ended or something stops the run."""
        providers = {route.partition(":")[0] for route in client.breakers}
        # Enough to keep every provider busy; more would only hold references in memory.
        slots = asyncio.Semaphore(client.settings.max_concurrent * len(providers))
        with self._handled_signals():
            async with asyncio.TaskGroup() as group:
                self._tasks = [group.create_task(self._row(client, row, slots)) for row in rows]
                self._unsent.update(self._tasks)
        if self._bug is not None:
            raise self._bug

    def stop(self, why: str, *, drop: bool = False) -> None:
        """Start nothing more; with ``drop`` also cancel requests that were sent."""
        self.stopped = self.stopped or why
        for task in self._tasks if drop else tuple(self._unsent):
            if task is not None:
                task.cancel()

    async def _row(self, client: ImageClient, row: PromptRow, slots: asyncio.Semaphore) -> None:
        async with slots:
            try:
                entry = await self._outcome(client, row)
                self.entries.append(entry)
                self._report(entry)
            except Exception as error:  # noqa: BLE001 - raised when requests in flight have ended
                self._bug = self._bug or error
                self.stop("an internal error")

    async def _outcome(self, client: ImageClient, row: PromptRow) -> Entry:
        task = asyncio.current_task()
        try:
            result = await row.spec.place(client, lambda: self._unsent.discard(task))
            save = partial(self._journal.done, row, result)
        except ImageGenerationError as error:
            if error.reason in _HOPELESS:
                self.stop(advised(str(error), error))
            save = partial(self._journal.failed, row, error)
        finally:
            self._unsent.discard(task)
        try:
            return save()  # on the event loop's thread, so that nothing can cancel it
        except OSError as error:
            why = system_words(error)
            self.stop(why)
            failure = {"status": "failed", "reason": "not_saved", "error": why}
            return {"id": row.id, "line": row.line, **failure}

    @contextmanager
    def _handled_signals(self) -> Iterator[None]:
        """Let signals stop the run, except those that the process ignores, as with ``nohup``."""
        loop, handled = asyncio.get_running_loop(), []
        for name in _SIGNALS:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                with suppress(NotImplementedError):  # Windows
                    loop.add_signal_handler(number, self._on_signal, name)
                    handled.append(number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    def _on_signal(self, name: str) -> None:
        again = self.signal is not None
        if not again:
            self.signal = name
            drop = "" if name == "SIGHUP" else f"; {_SIGNALS[name]} again drops it"
            warn(f"finishing what was sent, as it is paid for{drop}")
        # A terminal that closes sends SIGHUP more than once.
        self.stop(_SIGNALS[name], drop=again and name != "SIGHUP")


@contextmanager
def _progress(total: int, before: int) -> Iterator[Callable[[Entry], None]]:
    """Show a bar on a terminal, else a line for each row, on standard error."""

    def line(entry: Entry) -> str:
        failure = entry.get("error")
        return f"{entry['id']}: {failure or '{provider}, {latency_s:.1f} s'.format(**entry)}"

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda entry: warn(line(entry))
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress("images", *columns, console=console) as bar:
        task = bar.add_task("", total=total, completed=before)

        def show(entry: Entry) -> None:
            with suppress(OSError):  # images are saved even if the terminal is gone
                if "error" in entry:
                    console.print(one_line(line(entry)), style="red")
                bar.advance(task)

        yield show
