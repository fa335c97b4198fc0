"""The drop-in functions. They hold no logic: they call the default client.

The default client belongs to the thread: successive event loops of a thread share its state, one
running loop at a time, and a loop in another thread has a client of its own.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from resilient_imagen.tracebacks import without_locals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from resilient_imagen.call import OnStart
    from resilient_imagen.client import ImageClient
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


@dataclass(frozen=True, slots=True)
class _Options:
    deadline: float | None = None
    on_start: OnStart | None = None


_NO_OPTIONS = _Options()
_options: ContextVar[_Options] = ContextVar("resilient_imagen_call_options", default=_NO_OPTIONS)
_mine = threading.local()
_NEEDED = ("client", "breaker.machine", "providers.google", "providers.openai")
"""Modules that a client is made of, with all that they import."""
_SHARED = ("fleet", "breaker.redis", "limiter.redis")
"""And a client that shares its state with other processes."""


@contextmanager
def call_options(
    *, deadline: float | None = None, on_start: OnStart | None = None
) -> Iterator[None]:
    """Options for every call inside the block, for call sites that cannot be changed.

    An argument of the call itself wins; an inner block wins over an outer one. Tasks started
    inside the block keep the options.

    Args:
        deadline: Seconds for each whole call, queueing, retries and fallback included.
        on_start: Called once per call, when its first request is about to be sent.
    """
    outer = _options.get()
    token = _options.set(
        _Options(
            deadline=outer.deadline if deadline is None else deadline,
            on_start=outer.on_start if on_start is None else on_start,
        )
    )
    try:
        yield
    finally:
        _options.reset(token)


def default_client() -> ImageClient:
    """The client behind the drop-in functions: for a health route, warm-up and shutdown.

    Raises:
        ConfigurationError: The environment holds a setting that is not allowed, or no key.
    """
    client: ImageClient | None = getattr(_mine, "client", None)
    if client is None:
        from resilient_imagen.client import ImageClient

        client = _mine.client = ImageClient()
    return client


async def reset_default_client() -> None:
    """Close the default client and forget all its state; the next use reads the environment."""
    client: ImageClient | None = getattr(_mine, "client", None)
    _mine.client = None
    if client is not None:
        await client.aclose()


async def _client() -> ImageClient:
    """The default client; what it needs is imported in a thread: that takes a third of a second.

    A thread of our own, for the application's may be busy with what others wait for.
    """
    if getattr(_mine, "client", None) is None:
        from resilient_imagen.images.offload import off_loop

        await off_loop(_load)
    return default_client()


def _load() -> None:
    from resilient_imagen.settings import Settings

    shared = () if Settings().redis_url is None else _SHARED
    for name in (*_NEEDED, *shared):
        import_module(f"resilient_imagen.{name}")


def _left(deadline: float | None, since: float) -> float | None:
    """What the first call's imports left of its deadline."""
    if not isinstance(deadline, int | float) or not deadline > 0:
        return deadline  # none, or one that is refused in the right words
    return max(1e-3, deadline - (asyncio.get_running_loop().time() - since))


async def _as_dict(result: ImageResult) -> ImageDict:
    """The result's dict, its base64 made off the loop: big pictures take tens of milliseconds."""
    from resilient_imagen.images.base64s import encode_base64_async

    return result.to_dict(image_base64=await encode_base64_async(result.image_bytes))


@without_locals
async def generate_image(
    prompt: str,
    aspect_ratio: AspectRatio = "9:16",
    model: str | None = None,
    *,
    on_start: OnStart | None = None,
    deadline: float | None = None,
) -> ImageDict:
    """Make an image; the dict holds ``image_base64``, ``mime_type`` and where it came from.

    Args:
        prompt: What to draw.
        aspect_ratio: Width to height.
        model: Stands in for the first route's model.
        on_start: Called once, when the first request is about to be sent.
        deadline: Seconds for the whole call, queueing, retries and fallback included.

    Raises:
        ImageGenerationError: No image; ``reason`` says why. A ValueError when the request is at
            fault, a TimeoutError when time ran out.
    """
    options = _options.get()
    started = asyncio.get_running_loop().time()
    client = await _client()
    result = await client.generate(
        prompt,
        aspect_ratio=aspect_ratio,
        resolution="1K",
        model=model,
        on_start=options.on_start if on_start is None else on_start,
        deadline=_left(options.deadline if deadline is None else deadline, started),
    )
    return await _as_dict(result)


@without_locals
async def generate_image_with_references(
    prompt: str,
    reference_images: Sequence[ImageInput],
    aspect_ratio: AspectRatio = "9:16",
    resolution: Resolution = "2K",
    model: str | None = None,
    *,
    on_start: OnStart | None = None,
    deadline: float | None = None,
) -> ImageDict:
    """Make an image guided by others; see ``generate_image``.

    Args:
        prompt: What to draw.
        reference_images: ``{"image_base64": ..., "mime_type": ...}`` dicts; data URLs, bytes and
            ``{"image_url": ...}`` too. One that cannot be read is listed in
            ``dropped_references``.
        aspect_ratio: Width to height.
        resolution: ``1K``, ``2K`` or ``4K``.
        model: Stands in for the first route's model.
        on_start: Called once, when the first request is about to be sent.
        deadline: Seconds for the whole call, queueing, retries and fallback included.

    Raises:
        ImageGenerationError: As ``generate_image``.
    """
    options = _options.get()
    started = asyncio.get_running_loop().time()
    client = await _client()
    result = await client.generate(
        prompt,
        references=reference_images,
        aspect_ratio=aspect_ratio,
        resolution=resolution,
        model=model,
        on_start=options.on_start if on_start is None else on_start,
        deadline=_left(options.deadline if deadline is None else deadline, started),
    )
    return await _as_dict(result)


@without_locals
async def edit_image(
    image: ImageInput,
    feedback: str,
    aspect_ratio: AspectRatio = "9:16",
    resolution: Resolution = "2K",
    model: str | None = None,
    *,
    on_start: OnStart | None = None,
    deadline: float | None = None,
) -> ImageDict:
    """Change an image as the feedback says; see ``generate_image``.

    Args:
        image: base64, a data URL, bytes, a path (``pathlib.Path``; a text is never taken for one),
            an http(s) URL, an ``ImageResult`` or its dict.
        feedback: What to change.
        aspect_ratio: Width to height.
        resolution: ``1K``, ``2K`` or ``4K``.
        model: Stands in for the first route's model.
        on_start: Called once, when the first request is about to be sent.
        deadline: Seconds for the whole call, queueing, retries and fallback included.

    Raises:
        ImageGenerationError: As ``generate_image``; a ValueError when the image cannot be read.
    """
    options = _options.get()
    started = asyncio.get_running_loop().time()
    client = await _client()
    result = await client.edit(
        image,
        feedback,
        aspect_ratio=aspect_ratio,
        resolution=resolution,
        model=model,
        on_start=options.on_start if on_start is None else on_start,
        deadline=_left(options.deadline if deadline is None else deadline, started),
    )
    return await _as_dict(result)
