"""A call as an asynchronous iterator of its progress."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from resilient_imagen.pipeline.progress import ProgressBuffer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from resilient_imagen.pipeline.progress import OnProgress, Progress
    from resilient_imagen.result import ImageResult

__all__ = ["ProgressStream"]


class ProgressStream:
    """The progress of one call, which starts with the block or with the first event.

    ::

        async with client.stream("a lighthouse", partial_images=2) as events:
            async for progress in events:
                print(progress.kind, progress.provider)
            result = await events.result()

    The iteration ends after ``done``, and raises the error of a call that fails. Leaving the block
    before that cancels the call. Without a block, the call is cancelled when the last reference to
    the stream is dropped. A slow consumer does not hold up the call: a newer preview replaces an
    older one of the same route, and of more than 64 events the oldest are dropped.
    """

    def __init__(self, start: Callable[[OnProgress], Coroutine[Any, Any, ImageResult]]) -> None:
        self._start = start
        self._inbox = _Inbox()
        self._task: asyncio.Task[ImageResult] | None = None
        self._closed = False
        self._raised = False

    async def __aenter__(self) -> Self:
        """Start the call."""
        self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Cancel the call if it has not ended."""
        await self.aclose()

    def __aiter__(self) -> Self:
        """Return the stream itself; it can be iterated once."""
        return self

    async def __anext__(self) -> Progress:
        """Return the next event.

        Raises:
            StopAsyncIteration: The call has its result, or the stream was closed.
            ImageGenerationError: The call has failed.
        """
        task = self._begin()
        while (event := self._inbox.take()) is None and not task.done():
            await self._inbox.changed()
        if event is not None and not self._closed:
            return event
        if not self._closed and not self._raised:
            self._raised = True
            task.result()
        raise StopAsyncIteration

    def __del__(self) -> None:
        """Cancel the call, because its result can no longer be received."""
        task = self._task
        if task is not None and not task.done():
            with suppress(RuntimeError):  # the loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)

    async def result(self) -> ImageResult:
        """Wait for the end of the call and return its result; events are not needed for it.

        Raises:
            ImageGenerationError: The call has failed.
            RuntimeError: The stream was closed before the call had ended.
        """
        task = self._begin()
        await asyncio.wait({task})
        if task.cancelled():
            raise RuntimeError("the stream was closed before the call had ended")
        return task.result()

    async def aclose(self) -> None:
        """Cancel the call if it has not ended, and wait until its connections are closed."""
        self._closed = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    def _begin(self) -> asyncio.Task[ImageResult]:
        if self._task is None:
            if self._closed:
                raise RuntimeError("the stream is closed")
            self._task = asyncio.create_task(self._start(self._inbox.put))
            self._task.add_done_callback(self._inbox.end)
        return self._task


class _Inbox:
    """The events of a call that were not yet taken. The call refers to it, not to the stream."""

    def __init__(self) -> None:
        self._events = ProgressBuffer()
        self._change = asyncio.Event()

    def put(self, event: Progress) -> None:
        self._events.put(event)
        self._change.set()

    def end(self, task: asyncio.Task[ImageResult]) -> None:
        self._change.set()
        if not task.cancelled():
            task.exception()  # raised by the stream, unless its consumer has left

    def take(self) -> Progress | None:
        return self._events.take()

    async def changed(self) -> None:
        await self._change.wait()
        self._change.clear()
