"""Tracebacks: clear the local variables of the frames, and keep the lines.

A traceback keeps every frame that the exception passed, and a frame keeps its local variables: the
prompt, the reference images, the key, the vendor's message. Tools that render local variables
(structlog's ``dict_tracebacks``, rich, Sentry) would show them. An error that is also a local
variable of one of its frames would keep all of them in memory until the next garbage collection.
"""

from __future__ import annotations

import gc
import inspect
import sys
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from resilient_imagen.errors import AllProvidersFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

__all__ = ["clear_frame_locals", "hide_frame_locals"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def hide_frame_locals(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a public function so that its exceptions keep no local variables of its frames.

    Works for functions and coroutine functions; a decorated coroutine function remains one. An
    exception that the caller is already handling is not changed.
    """
    if not inspect.iscoroutinefunction(function):

        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            handled = id(sys.exception())
            try:
                return function(*args, **kwargs)
            except BaseException as error:
                clear_frame_locals(error, up_to=handled)
                raise
            finally:
                del args, kwargs  # this frame is in the traceback, too

        return call

    @wraps(function)
    async def call_async(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        handled = id(sys.exception())
        try:
            running = function(*args, **kwargs)
        finally:
            del args, kwargs
        try:
            return await running
        except BaseException as error:
            clear_frame_locals(error, up_to=handled)
            raise

    return cast("Callable[_P, _R]", call_async)


def clear_frame_locals(*errors: BaseException, up_to: int = id(None)) -> None:
    """Clear the local variables of every finished frame that the exceptions keep.

    Their causes, contexts, group members and ``errors`` are cleared, too. Frames that are running
    or suspended are not cleared: their variables are still in use.

    Args:
        errors: The exceptions.
        up_to: ``id`` of an exception at which a chain of causes and contexts ends.
    """
    seen = {up_to, id(None)}
    known: set[FrameType] = set()
    waiting: list[BaseException | None] = [*errors]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        waiting += (each.__cause__, each.__context__, *_members(each))
        trace = each.__traceback__
        while trace is not None:
            frame: FrameType | None = trace.tb_frame
            # A frame keeps its callers' frames, too.
            while frame is not None and frame not in known and _has_ended(frame):
                known.add(frame)
                try:  # noqa: SIM105 - for each frame of each error, and suppress() takes longer than this
                    frame.clear()
                except RuntimeError:  # the frame is suspended
                    pass
                frame = frame.f_back
            trace = trace.tb_next


def _members(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions
    return error.errors if isinstance(error, AllProvidersFailedError) else ()


def _has_ended(frame: FrameType) -> bool:
    """Return whether a frame has finished.

    ``frame.clear()`` would close a suspended generator or coroutine before Python 3.13. The garbage
    collector reports the code among a frame's referents only after the frame has finished.
    """
    return frame.f_code in gc.get_referents(frame)
