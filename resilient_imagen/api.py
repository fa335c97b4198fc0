"""The drop-in functions. They hold no logic: they call the default client.

Each thread has its own default client: successive event loops of a thread share its state, one
running loop at a time. `resilient_imagen.sync` has one for all threads.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeGuard, TypeVar, Unpack, cast
from weakref import WeakSet

from resilient_imagen.errors import DeadlineExceededError
from resilient_imagen.images.worker_pool import off_loop
from resilient_imagen.request import EditOptions, ImageOptions, check_option_names
from resilient_imagen.tracebacks import hide_frame_locals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from resilient_imagen.client import ImageClient
    from resilient_imagen.pipeline.on_start import OnStart
    from resilient_imagen.pipeline.progress import OnProgress
    from resilient_imagen.request import AspectRatio, Resolution
    from resilient_imagen.result import ImageDict, ImageInput, ImageResult

__all__ = [
    "call_options",
    "default_client",
    "edit_image",
    "generate_image",
    "generate_image_with_references",
    "reset_default_client",
]


_O = TypeVar("_O", bound=ImageOptions)


@dataclass(frozen=True, slots=True)
class _Options:
    deadline: float | None = None
    on_start: OnStart | None = None
    on_progress: OnProgress | None = None
    request: ImageOptions = field(default_factory=ImageOptions)

    def override(self, options: _O) -> _O:
        """Return the block's options, replaced by those that a call or an inner block requests."""
        requested = {name: value for name, value in options.items() if value is not None}
        return cast("_O", {**self.request, **requested})


_NO_OPTIONS = _Options()
_options: ContextVar[_Options] = ContextVar("resilient_imagen_call_options", default=_NO_OPTIONS)
_mine = threading.local()
_NEEDED = ("client", "circuitbreaker.pybreaker_adapter", "providers.google", "providers.openai")
"""Modules that a client needs, with their imports."""
_SHARED = ("distributed", "distributed.redis_breaker", "distributed.redis_limiter")
"""Modules that a client needs to share its state with other processes."""


@contextmanager
def call_options(
    *,
    deadline: float | None = None,
    on_start: OnStart | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[ImageOptions],
) -> Iterator[None]:
    """Set options for every call inside the block, for call sites that cannot be changed.

    An argument of the call itself wins; an inner block wins over an outer one. Tasks started
    inside the block keep the options. They are kept in a context variable, so a block that is
    entered in a thread of its own (a FastAPI dependency that is an ordinary ``def``) is not seen by
    calls elsewhere: make the dependency ``async def``.

    Args:
        deadline: Seconds for each whole call, as in ``generate_image``. None leaves the outer
            block's in force; ``math.inf`` lifts it.
        on_start: Called once per call, when its first request is about to be sent. None leaves the
            outer block's in force.
        on_progress: Called with each ``Progress`` of each call. None leaves the outer block's in
            force.
        options: See ``ImageOptions``. None leaves the outer block's in force.

    Raises:
        TypeError: An option is unknown.
    """
    check_option_names(options, ImageOptions)
    outer = _options.get()
    inner = _Options(
        deadline=outer.deadline if deadline is None else deadline,
        on_start=outer.on_start if on_start is None else on_start,
        on_progress=outer.on_progress if on_progress is None else on_progress,
        request=outer.override(options),
    )
    _options.set(inner)
    try:
        yield
    finally:
        # Fixtures and generators may end in another context than they began in, where a token
        # would not be accepted: there these options are in force only if they were copied.
        if _options.get() is inner:
            _options.set(outer)


def default_client() -> ImageClient:
    """Return this thread's client behind the functions: for a health route, warm-up and shutdown.

    Making it while another thread has one logs a warning, because limits are then per thread.

    Raises:
        ConfigurationError: The environment holds a setting that is not allowed, or no key.
    """
    client: ImageClient | None = getattr(_mine, "client", None)
    if client is None:
        from resilient_imagen.client import ImageClient

        client = _mine.client = ImageClient()
        _note(client)
    return client


async def reset_default_client() -> None:
    """Forget this thread's default client and its state; the next use reads the environment.

    Connections are closed before this returns, unless calls are in flight: those finish normally,
    and the last of them closes the connections. Until then the limits hold for the old client and
    for the next one separately.
    """
    client: ImageClient | None = getattr(_mine, "client", None)
    _mine.client = None
    if client is not None:
        with _lock:
            _clients.discard(client)
        await client.retire()


def on_start_in_force(on_start: OnStart | None) -> OnStart | None:
    """Return the call's own ``on_start``, or that of ``call_options``."""
    return _options.get().on_start if on_start is None else on_start


def on_progress_in_force(on_progress: OnProgress | None) -> OnProgress | None:
    """Return the call's own ``on_progress``, or that of ``call_options``."""
    return _options.get().on_progress if on_progress is None else on_progress


_lock = threading.RLock()
_clients: WeakSet[ImageClient] = WeakSet()
"""The default clients of all threads, until they are reset or their thread has ended."""
_inherited: Final[list[ImageClient]] = []
"""The default clients of the parent's threads. A child keeps them: they would be freed with these
threads, which it does not have, and that would close connections that the parent uses."""


def _note(client: ImageClient) -> None:
    with _lock:
        others = len(_clients)
        _clients.add(client)
    if others == 1:
        client._warn(  # noqa: SLF001 - the warning is an event of the client
            "second_default_client",
            f"thread {threading.current_thread().name} has made a second default client: limits "
            "and breakers are per thread now; resilient_imagen.sync has one client for all threads",
        )


def _before_fork() -> None:
    _lock.acquire()
    _inherited.extend(_clients)


def _in_parent() -> None:
    del _inherited[len(_inherited) - len(_clients) :]
    _lock.release()


def _in_child() -> None:
    _clients.clear()
    if (client := getattr(_mine, "client", None)) is not None:
        _clients.add(client)
    _lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


async def _begin(
    on_start: OnStart | None, deadline: float | None
) -> tuple[ImageClient, OnStart | None, float | None]:
    """Return the default client, and the call's options with what is left of its deadline.

    Raises:
        DeadlineExceededError: The deadline passed while the library was being loaded.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    on_start = on_start_in_force(on_start)
    deadline = _options.get().deadline if deadline is None else deadline
    if getattr(_mine, "client", None) is not None:
        return default_client(), on_start, deadline
    try:
        async with asyncio.timeout(None) as scope:
            # The import takes a third of a second or more, so it runs in separate threads: those of
            # the application's executor may all be busy.
            if deadline is None:
                deadline = await off_loop(_configured_deadline)
            if _is_seconds(deadline):
                scope.reschedule(started + deadline)
            await off_loop(_load)
    except TimeoutError:
        if not scope.expired():
            raise
        raise DeadlineExceededError("out of time, spent loading the library") from None
    client = default_client()
    if _is_seconds(deadline):
        deadline = max(1e-3, started + deadline - loop.time())
    return client, on_start, deadline


def _is_seconds(deadline: float | None) -> TypeGuard[float]:
    """Return whether a deadline is a positive, finite number of seconds."""
    return isinstance(deadline, int | float) and 0 < deadline < math.inf


def _configured_deadline() -> float | None:
    from resilient_imagen.settings import Settings

    return Settings().deadline


def _load() -> None:
    from resilient_imagen.settings import Settings

    shared = () if Settings().redis_url is None else _SHARED
    for name in (*_NEEDED, *shared):
        import_module(f"resilient_imagen.{name}")


async def _as_dict(result: ImageResult) -> ImageDict:
    """Return the result's dict; encode in a thread, as large images take tens of milliseconds."""
    from resilient_imagen.images.base64_codec import encode_base64_async

    first, *more = [await encode_base64_async(each) for each in result.images]
    return result.to_dict(image_base64=first, more_base64=more)


@hide_frame_locals
async def generate_image(
    prompt: str,
    aspect_ratio: AspectRatio = "9:16",
    model: str | None = None,
    *,
    resolution: Resolution = "1K",
    on_start: OnStart | None = None,
    on_progress: OnProgress | None = None,
    deadline: float | None = None,
    **options: Unpack[ImageOptions],
) -> ImageDict:
    """Make an image; the dict holds ``image_base64``, ``mime_type`` and its origin.

    Args:
        prompt: Description of the image.
        aspect_ratio: Width to height.
        model: Replaces the first route's model.
        resolution: ``1K``, ``2K`` or ``4K``.
        on_start: Called once, when the first request is about to be sent.
        on_progress: Called with each ``Progress`` of the call.
        deadline: Seconds for the whole call: first-use imports, queueing, retries and fallback
            included. ``math.inf`` lifts a limit of ``call_options`` or IMAGE_GEN_DEADLINE.
        options: See ``ImageOptions``.

    Raises:
        ImageGenerationError: No image; ``reason`` says why. A ValueError when the request is at
            fault, a TimeoutError when time ran out.
    """
    client, on_start, deadline = await _begin(on_start, deadline)
    result = await client.generate(
        prompt,
        aspect_ratio=aspect_ratio,
        resolution=resolution,
        model=model,
        on_start=on_start,
        on_progress=on_progress_in_force(on_progress),
        deadline=deadline,
        **_options.get().override(options),
    )
    return await _as_dict(result)


@hide_frame_locals
async def generate_image_with_references(
    prompt: str,
    reference_images: Sequence[ImageInput],
    aspect_ratio: AspectRatio = "9:16",
    resolution: Resolution = "2K",
    model: str | None = None,
    *,
    on_start: OnStart | None = None,
    on_progress: OnProgress | None = None,
    deadline: float | None = None,
    **options: Unpack[ImageOptions],
) -> ImageDict:
    """Make an image guided by others; see ``generate_image``.

    Args:
        prompt: Description of the image.
        reference_images: ``{"image_base64": ..., "mime_type": ...}`` dicts; also base64, data
            URLs, bytes, ``{"image_url": ...}`` and paths (``pathlib.Path``; a str is never taken
            for one, as it may come from a stranger). One that cannot be read is listed in
            ``dropped_references``.
        aspect_ratio: Width to height.
        resolution: ``1K``, ``2K`` or ``4K``.
        model: Replaces the first route's model.
        on_start: Called once, when the first request is about to be sent.
        on_progress: Called with each ``Progress`` of the call.
        deadline: Seconds for the whole call: first-use imports, queueing, retries and fallback
            included. ``math.inf`` lifts a limit of ``call_options`` or IMAGE_GEN_DEADLINE.
        options: See ``ImageOptions``.

    Raises:
        ImageGenerationError: As ``generate_image``.
    """
    client, on_start, deadline = await _begin(on_start, deadline)
    result = await client.generate(
        prompt,
        references=reference_images,
        aspect_ratio=aspect_ratio,
        resolution=resolution,
        model=model,
        on_start=on_start,
        on_progress=on_progress_in_force(on_progress),
        deadline=deadline,
        **_options.get().override(options),
    )
    return await _as_dict(result)


@hide_frame_locals
async def edit_image(
    image: ImageInput,
    feedback: str,
    aspect_ratio: AspectRatio = "9:16",
    resolution: Resolution = "2K",
    model: str | None = None,
    *,
    on_start: OnStart | None = None,
    on_progress: OnProgress | None = None,
    deadline: float | None = None,
    **options: Unpack[EditOptions],
) -> ImageDict:
    """Change an image as the feedback says; see ``generate_image``.

    Args:
        image: base64, a data URL, bytes, a path (``pathlib.Path``; a string is never taken for a
            path), an http(s) URL, an ``ImageResult`` or its dict.
        feedback: Description of the change.
        aspect_ratio: Width to height.
        resolution: ``1K``, ``2K`` or ``4K``.
        model: Replaces the first route's model.
        on_start: Called once, when the first request is about to be sent.
        on_progress: Called with each ``Progress`` of the call.
        deadline: Seconds for the whole call: first-use imports, queueing, retries and fallback
            included. ``math.inf`` lifts a limit of ``call_options`` or IMAGE_GEN_DEADLINE.
        options: See ``EditOptions``.

    Raises:
        ImageGenerationError: As ``generate_image``; a ValueError when the image cannot be read.
    """
    client, on_start, deadline = await _begin(on_start, deadline)
    result = await client.edit(
        image,
        feedback,
        aspect_ratio=aspect_ratio,
        resolution=resolution,
        model=model,
        on_start=on_start,
        on_progress=on_progress_in_force(on_progress),
        deadline=deadline,
        **_options.get().override(options),
    )
    return await _as_dict(result)
