"""The same functions and client without ``async``: for threads, scripts, Django, Celery, notebooks.

All threads of the process share one event loop in a daemon thread and, for the functions, one
client on it, so that limits, breakers and costs are those of the process. The loop starts with the
first call and stops at exit.

- Context variables of the calling thread (``call_options``, the current span, structlog's) are in
  force for its calls.
- ``on_start`` is called in the calling thread, beside the request. If it is slow, the call returns
  later; the image is made meanwhile. What an async one returns is awaited on a loop of that thread
  (in a thread beside it, if a loop is running there, as in a notebook), and is cancelled when the
  image is there. What it raises is logged.
- An exception that interrupts the wait, such as KeyboardInterrupt or Celery's
  SoftTimeLimitExceeded, cancels the call, closes its connection and is raised within a second.
- A call blocks its thread, also where an event loop is running in it: then that loop stands still.
  On the loop of this module (in a provider's method) it raises a RuntimeError.
- A forked child has a loop and clients of its own, and leaves its parent's connections alone.
- Python starts no threads once the main thread has ended: other threads have to be joined before.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack

from resilient_imagen import api
from resilient_imagen.api import call_options
from resilient_imagen.background_loop import BackgroundCall, background_loop, has_background_loop
from resilient_imagen.pipeline.on_start import OnStartHook
from resilient_imagen.tracebacks import hide_frame_locals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from resilient_imagen import client
    from resilient_imagen.circuitbreaker import CircuitBreaker
    from resilient_imagen.circuitbreaker.config import BreakerConfig
    from resilient_imagen.circuitbreaker.types import BreakerMetrics, BreakerSnapshot, Transition
    from resilient_imagen.pipeline.on_start import OnStart
    from resilient_imagen.providers.base import Provider
    from resilient_imagen.request import AspectRatio, EditOptions, ImageOptions, Resolution
    from resilient_imagen.result import ImageDict, ImageInput, ImageResult
    from resilient_imagen.settings import Settings
    from resilient_imagen.snapshots import Snapshot
    from resilient_imagen.telemetry.sink import EventSink

__all__ = [
    "BreakerHandle",
    "ImageClient",
    "call_options",
    "default_client",
    "edit_image",
    "generate_image",
    "generate_image_with_references",
    "reset_default_client",
]

_T = TypeVar("_T")


@hide_frame_locals
def generate_image(
    prompt: str,
    aspect_ratio: AspectRatio = "9:16",
    model: str | None = None,
    *,
    resolution: Resolution = "1K",
    on_start: OnStart | None = None,
    deadline: float | None = None,
    **options: Unpack[ImageOptions],
) -> ImageDict:
    """Make an image; the dict holds ``image_base64``, ``mime_type`` and its origin.

    Args:
        prompt: Description of the image.
        aspect_ratio: Width to height.
        model: Replaces the first route's model.
        resolution: ``1K``, ``2K`` or ``4K``.
        on_start: Called once in this thread, when the first request is about to be sent.
        deadline: Seconds for the whole call: first-use imports, queueing, retries and fallback
            included. ``math.inf`` lifts a limit of ``call_options`` or IMAGE_GEN_DEADLINE.
        options: See ``ImageOptions``.

    Raises:
        ImageGenerationError: No image; ``reason`` says why. A ValueError when the request is at
            fault, a TimeoutError when time ran out.
        RuntimeError: It was called on this module's own event loop.
    """
    return _generate(
        lambda hook: api.generate_image(
            prompt,
            aspect_ratio,
            model,
            resolution=resolution,
            on_start=hook,
            deadline=deadline,
            **options,
        ),
        api.on_start_in_force(on_start),
    )


@hide_frame_locals
def generate_image_with_references(
    prompt: str,
    reference_images: Sequence[ImageInput],
    aspect_ratio: AspectRatio = "9:16",
    resolution: Resolution = "2K",
    model: str | None = None,
    *,
    on_start: OnStart | None = None,
    deadline: float | None = None,
    **options: Unpack[ImageOptions],
) -> ImageDict:
    """Make an image guided by others; see ``generate_image``.

    Args:
        prompt: Description of the image.
        reference_images: ``{"image_base64": ..., "mime_type": ...}`` dicts; data URLs, bytes and
            ``{"image_url": ...}`` too. One that cannot be read is listed in
            ``dropped_references``.
        aspect_ratio: Width to height.
        resolution: ``1K``, ``2K`` or ``4K``.
        model: Replaces the first route's model.
        on_start: Called once in this thread, when the first request is about to be sent.
        deadline: Seconds for the whole call, as in ``generate_image``.
        options: See ``ImageOptions``.

    Raises:
        ImageGenerationError: As ``generate_image``.
        RuntimeError: It was called on this module's own event loop.
    """
    return _generate(
        lambda hook: api.generate_image_with_references(
            prompt,
            reference_images,
            aspect_ratio,
            resolution,
            model,
            on_start=hook,
            deadline=deadline,
            **options,
        ),
        api.on_start_in_force(on_start),
    )


@hide_frame_locals
def edit_image(
    image: ImageInput,
    feedback: str,
    aspect_ratio: AspectRatio = "9:16",
    resolution: Resolution = "2K",
    model: str | None = None,
    *,
    on_start: OnStart | None = None,
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
        on_start: Called once in this thread, when the first request is about to be sent.
        deadline: Seconds for the whole call, as in ``generate_image``.
        options: See ``EditOptions``.

    Raises:
        ImageGenerationError: As ``generate_image``; a ValueError when the image cannot be read.
        RuntimeError: It was called on this module's own event loop.
    """
    return _generate(
        lambda hook: api.edit_image(
            image,
            feedback,
            aspect_ratio,
            resolution,
            model,
            on_start=hook,
            deadline=deadline,
            **options,
        ),
        api.on_start_in_force(on_start),
    )


@hide_frame_locals
def default_client() -> ImageClient:
    """Return the client behind the functions: for a health route, warm-up and shutdown.

    Raises:
        ConfigurationError: The environment holds a setting that is not allowed, or no key.
    """
    _on_loop(api.default_client)
    return _default


@hide_frame_locals
def reset_default_client() -> None:
    """Forget the default client and all its state; the next use reads the environment.

    Connections are closed before this returns, unless calls are in flight: those finish as if
    nothing had happened, and the last of them closes the connections. Until then the limits hold
    for the old client and for the next one separately.
    """
    if has_background_loop():
        _run(api.reset_default_client)


class ImageClient:
    """Requests images from providers, in order; all threads may share it.

    The client owns its state: nothing is shared with the functions' default client. It works on the
    event loop that all threads of the process share. In a forked child it begins with new state.

    Args:
        settings: Read from the environment when None.
        providers: Custom providers, found by name in IMAGE_GEN_ROUTES. One named ``google`` or
            ``openai`` replaces the built-in one. Their methods are called on the shared loop.
        sinks: More listeners for events, beside OpenTelemetry and structlog.
        tracer_provider: For spans; the global one when None.
        meter_provider: For metrics; the global one when None.

    Raises:
        ConfigurationError: A setting is not allowed, no route can be used at all, or two providers
            have the same name.
        TypeError: A custom provider lacks its name or a method.
    """

    @hide_frame_locals
    def __init__(
        self,
        settings: Settings | None = None,
        *,
        providers: Iterable[Provider] | None = None,
        sinks: Iterable[EventSink] | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        from resilient_imagen.client import ImageClient as AsyncImageClient

        self._client: Callable[[], client.ImageClient] = _PerProcess(
            partial(
                AsyncImageClient,
                settings,
                providers=None if providers is None else tuple(providers),
                sinks=None if sinks is None else tuple(sinks),
                tracer_provider=tracer_provider,
                meter_provider=meter_provider,
            )
        )

    def __enter__(self) -> Self:
        """Return the client itself; nothing is connected yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Close every connection."""
        self.close()

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return _on_loop(lambda: self._client().settings)

    @hide_frame_locals
    def warm_up(self) -> None:
        """Build the SDK clients and join the fleet; the first call does it otherwise.

        Raises:
            ConfigurationError: The Redis of IMAGE_GEN_REDIS_URL is there and refuses us.
        """
        _run(lambda: self._client().warm_up())

    @hide_frame_locals
    def generate(
        self,
        prompt: str,
        *,
        aspect_ratio: AspectRatio = "9:16",
        references: Sequence[ImageInput] = (),
        resolution: Resolution = "2K",
        model: str | None = None,
        deadline: float | None = None,
        on_start: OnStart | None = None,
        **options: Unpack[ImageOptions],
    ) -> ImageResult:
        """Make one image.

        Args:
            prompt: Description of the image.
            aspect_ratio: Width to height, one of ``request.ASPECT_RATIOS``.
            references: Images to be guided by: dicts with ``image_base64`` or ``image_url``, data
                URLs, http(s) URLs, bytes or paths (``pathlib.Path``; a string is never taken for a
                path, as it may come from a stranger).
            resolution: ``1K``, ``2K`` or ``4K``.
            model: Replaces the first route's model, for this call.
            deadline: Seconds for the whole call, queueing, retries and fallback included; None for
                that of the settings, ``math.inf`` for no limit.
            on_start: Called once in this thread, when the first request is about to be sent.
            options: See ``ImageOptions``.

        Raises:
            ImageGenerationError: No image; ``reason`` says why, ``attempts`` what was tried.
            RuntimeError: The client is closed, or it was called on this module's own event loop.
        """
        return _generate(
            lambda hook: self._client().generate(
                prompt,
                aspect_ratio=aspect_ratio,
                references=references,
                resolution=resolution,
                model=model,
                deadline=deadline,
                on_start=hook,
                **options,
            ),
            on_start,
        )

    @hide_frame_locals
    def edit(
        self,
        image: ImageInput,
        feedback: str,
        *,
        aspect_ratio: AspectRatio = "9:16",
        resolution: Resolution = "2K",
        model: str | None = None,
        deadline: float | None = None,
        on_start: OnStart | None = None,
        **options: Unpack[EditOptions],
    ) -> ImageResult:
        """Change one image as the feedback says.

        Args:
            image: base64, a data URL, bytes, a path (``pathlib.Path``; a string is never taken for
                a path), an http(s) URL, an ``ImageResult`` or its dict.
            feedback: Description of the change.
            aspect_ratio: As in ``generate``, and so are the others.
            resolution: ``1K``, ``2K`` or ``4K``.
            model: Replaces the first route's model, for this call.
            deadline: Seconds for the whole call; None for that of the settings, ``math.inf`` for no
                limit.
            on_start: Called once in this thread, when the first request is about to be sent.
            options: See ``EditOptions``.

        Raises:
            InvalidRequestError: The image cannot be read.
            ImageGenerationError: No image; ``reason`` says why, ``attempts`` what was tried.
            RuntimeError: The client is closed, or it was called on this module's own event loop.
        """
        return _generate(
            lambda hook: self._client().edit(
                image,
                feedback,
                aspect_ratio=aspect_ratio,
                resolution=resolution,
                model=model,
                deadline=deadline,
                on_start=hook,
                **options,
            ),
            on_start,
        )

    @property
    def breakers(self) -> Mapping[str, BreakerHandle]:
        """Each route's circuit breaker, by ``provider:model``, for operators.

        To force one open or release it, to reconfigure it or to listen, while calls go on.
        """
        names = _on_loop(lambda: tuple(self._client().breakers))
        return MappingProxyType({name: BreakerHandle(name, self._client) for name in names})

    def snapshot(self) -> Snapshot:
        """Return the state of every route and the costs, as plain JSON: for a health route.

        A configured route without a key is listed, too, with the cause as ``off``. ``process`` has
        the totals of all clients of this process.
        """
        return _on_loop(lambda: self._client().snapshot())

    def retire(self) -> None:
        """Take no more calls; close once those in flight are over, at once if there are none.

        Calls in flight finish as if nothing had happened, and this returns without waiting for
        them.
        """
        _run(lambda: self._client().retire())

    def close(self) -> None:
        """Close every connection; closing twice does no harm.

        Calls in flight, of any thread, are ended, each with a RuntimeError that says so.
        """
        _run(lambda: self._client().aclose())


class BreakerHandle:
    """The circuit breaker of one route of a client, for operators; any thread may use it.

    Args:
        name: Its route, as ``provider:model``.
        client: Returns the client, on the shared event loop.
    """

    def __init__(self, name: str, client: Callable[[], client.ImageClient]) -> None:
        self.name = name
        self._client = client

    @property
    def force_open(self) -> bool:
        """Reject all calls in any mode until this is set to False."""
        return self._ask(lambda breaker: breaker.force_open)

    @force_open.setter
    def force_open(self, forced: bool) -> None:
        def force(breaker: CircuitBreaker) -> None:
            breaker.force_open = forced

        self._ask(force)

    def open_for(self, seconds: float, *, cause: str | None, summary: str | None) -> None:
        """Open now for exactly ``seconds``; if it is open already, until the later of both ends.

        Args:
            seconds: Length of the open period.
            cause: Reason that rejections report.
            summary: Short text that rejections report.
        """
        self._ask(lambda breaker: breaker.open_for(seconds, cause=cause, summary=summary))

    def reconfigure(self, config: BreakerConfig) -> None:
        """Apply other settings; state, counts, window and the current open period stay."""
        self._ask(lambda breaker: breaker.reconfigure(config))

    def subscribe(self, listener: Callable[[Transition], None]) -> Callable[[], None]:
        """Call ``listener`` with every later transition, in a separate thread.

        Returns:
            A function that unsubscribes the listener.

        Raises:
            TypeError: The listener is a coroutine function.
        """
        return self._ask(lambda breaker: breaker.subscribe(listener))

    def allows_calls(self) -> bool:
        """Return whether a call would be admitted now. Reserves nothing."""
        return self._ask(lambda breaker: breaker.allows_calls())

    def metrics(self) -> BreakerMetrics:
        """Return the current metrics."""
        return self._ask(lambda breaker: breaker.metrics())

    def snapshot(self) -> BreakerSnapshot:
        """Return the breaker's condition, ready for JSON; times in seconds."""
        return self._ask(lambda breaker: breaker.snapshot())

    def _ask(self, question: Callable[[CircuitBreaker], _T]) -> _T:
        return _on_loop(lambda: question(self._client().breakers[self.name]))


class _PerProcess:
    """Returns the process's own async client: built at once, and again in each forked child.

    Called on the shared loop only. Clients of parents are kept, as freeing them would close sockets
    that the parent uses.
    """

    def __init__(self, build: Callable[[], client.ImageClient]) -> None:
        self._build = build
        self._clients = [build()]
        self._process = os.getpid()

    def __call__(self) -> client.ImageClient:
        if self._process != os.getpid():
            self._clients.append(self._build())
            self._process = os.getpid()
        return self._clients[-1]


def _of_default_client() -> ImageClient:
    found = ImageClient.__new__(ImageClient)
    found._client = api.default_client  # noqa: SLF001 - the constructor would build another one
    return found


_default: Final = _of_default_client()
"""Whichever client is the default one when a method is called."""


def _generate(
    function: Callable[[OnStart | None], Coroutine[Any, Any, _T]], on_start: OnStart | None
) -> _T:
    """Run a call that makes an image, with ``on_start`` called in this thread."""
    if not callable(on_start):  # None, or a mistake that the client reports
        return _run(lambda: function(on_start))
    call: BackgroundCall[_T] = BackgroundCall()
    hook = partial(call.do_in_caller, partial(_serve, on_start, call.ended))
    return call.run(background_loop(api.reset_default_client), lambda: function(hook))


def _run(function: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    return BackgroundCall[_T]().run(background_loop(api.reset_default_client), function)


def _on_loop(function: Callable[[], _T]) -> _T:
    async def call() -> _T:
        return function()

    return _run(call)


def _serve(on_start: OnStart, ended: Future[None]) -> None:
    """Call ``on_start`` here; await what it returns until that or the generation has ended."""
    returned: list[object] = []
    OnStartHook(lambda: returned.append(on_start())).fire()
    for answer in returned:
        if isawaitable(answer):
            _await_here(answer, ended)


def _await_here(answer: Awaitable[object], ended: Future[None]) -> None:
    def run() -> None:
        # With a factory the runner leaves the thread's current loop as it is.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(_beside(answer, ended))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        run()
    else:
        thread = threading.Thread(
            target=copy_context().run, args=(run,), name="resilient-imagen-on-start", daemon=True
        )
        thread.start()
        thread.join()


async def _beside(answer: Awaitable[object], ended: Future[None]) -> None:
    done = asyncio.Event()

    async def wait() -> None:
        try:
            await answer
        finally:
            done.set()

    hook = OnStartHook(wait)
    hook.fire()
    over = asyncio.wrap_future(ended)
    over.add_done_callback(lambda _: done.set())
    try:
        await done.wait()
    finally:
        over.cancel()
        await hook.finish()
