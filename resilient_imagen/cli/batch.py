"""Many images: a few at a time, each kept as soon as it is there, nothing begun after a stop."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen import ImageGenerationError, Reason
from resilient_imagen.cli import image_files
from resilient_imagen.cli.command_errors import system_words
from resilient_imagen.cli.error_hints import advised
from resilient_imagen.cli.journal import unsaved
from resilient_imagen.images.inspect import sniff_mime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_imagen import ImageClient, ImageResult
    from resilient_imagen.cli.journal import Entry, Journal
    from resilient_imagen.cli.prompts import PromptRow

__all__ = ["Batch"]

_HOPELESS: Final = frozenset(
    {
        Reason.UNAUTHENTICATED,
        Reason.FORBIDDEN,
        Reason.MODEL_NOT_FOUND,
        Reason.QUOTA_EXHAUSTED,
    }
)
"""What the next row would fail for as well, until somebody acts."""


@dataclass(slots=True)
class Batch:
    """What is to be done, and what came of it in this run."""

    rows: Sequence[PromptRow]
    journal: Journal
    tell: Callable[[PromptRow, Entry], None]
    """Hears of each row that is settled."""
    entries: list[Entry] = field(default_factory=list)
    """Of this run, in the order in which they ended."""
    stopped: str | None = None
    """Why rows were left for another run."""
    _waiting: deque[PromptRow] = field(default_factory=deque)
    _workers: list[asyncio.Task[None]] = field(default_factory=list)
    _unsent: set[asyncio.Task[Any]] = field(default_factory=set)
    """Workers with a row for which no request has been sent yet."""

    async def run(self, client: ImageClient, at_once: int) -> None:
        """Work until nothing is left or stopped."""
        self._waiting.extend(self.rows)
        self._workers = [asyncio.create_task(self._work(client)) for _ in self.rows[:at_once]]
        try:
            if self._workers:
                await asyncio.wait(self._workers)
        finally:
            for worker in self._workers:
                worker.cancel()
            ended = await asyncio.gather(*self._workers, return_exceptions=True)
        for each in ended:
            if isinstance(each, Exception):
                raise each

    def stop(self, why: str, *, at_once: bool = False) -> None:
        """Begin nothing more. What was sent is paid for, so it is waited for.

        Args:
            why: For the summary; the first one counts.
            at_once: Wait for nothing.
        """
        self.stopped = self.stopped or why
        self._waiting.clear()
        for worker in self._workers if at_once else tuple(self._unsent):
            worker.cancel()

    async def _work(self, client: ImageClient) -> None:
        me = asyncio.current_task()
        assert me is not None  # noqa: S101 - it runs as one
        while self._waiting:
            row = self._waiting.popleft()
            self._unsent.add(me)
            try:
                await self._make(client, row, sent=lambda: self._unsent.discard(me))
            except Exception:
                self.stop("an internal error")  # no reason to drop what others have under way
                raise
            finally:
                self._unsent.discard(me)

    async def _make(self, client: ImageClient, row: PromptRow, sent: Callable[[], None]) -> None:
        try:
            result = await row.order.place(client, on_start=sent)
        except ImageGenerationError as error:
            entry = self._kept(row, partial(self.journal.failed, row, _why(error)))
            if error.reason in _HOPELESS:
                self.stop(advised(str(error), error))
        else:
            # On the loop's own thread: nothing can be cancelled between the picture and its line.
            suffix = image_files.extension(result.mime_type)
            keep = partial(
                self.journal.done, row, suffix, result.image_bytes, _how(result), _more(result)
            )
            entry = self._kept(row, keep)
        self.entries.append(entry)
        self.tell(row, entry)

    def _kept(self, row: PromptRow, keep: Callable[[], Entry]) -> Entry:
        """The entry; with the disk full, or gone, nothing more is begun."""
        try:
            return keep()
        except OSError as error:
            self.stop(system_words(error))
            return unsaved(row, system_words(error))


def _why(error: ImageGenerationError) -> Entry:
    return {
        "reason": str(error.reason),
        "error": advised(str(error), error),
        "attempts": [asdict(attempt) for attempt in error.attempts],
    }


def _how(result: ImageResult) -> Entry:
    pictures = {"image_base64", "images"}
    return {key: value for key, value in result.to_dict().items() if key not in pictures}


def _more(result: ImageResult) -> list[tuple[str, bytes]]:
    """Return the further pictures, each with its type's extension."""
    return [
        (image_files.extension(sniff_mime(data) or result.mime_type), data)
        for data in result.more_images
    ]
