"""The same functions and client without ``async``: for threads, scripts, Django, Celery, notebooks.

All threads of the process share one event loop in a daemon thread and, for the functions, one
client on it, so that limits, breakers and costs are those of the process. The loop starts with the
first call and stops at exit.

- Context variables of the calling thread (``call_options``, the current span, structlog's) are in
  force for its calls.
- ``on_start`` and ``on_progress`` are called in the calling thread. If one is slow, the call
  returns later; the image is made meanwhile. The coroutine of an async one is awaited on a loop of
  that thread (in a thread beside it, if a loop is running there, as in a notebook). When the image
  is there, ``on_start`` is cancelled, ``on_progress`` 10 seconds later. Their exceptions are
  logged.
- An exception that interrupts the wait, such as KeyboardInterrupt or Celery's
  SoftTimeLimitExceeded, cancels the call, closes its connection and is raised within a second.
- A call blocks its thread, and with it an event loop that is running there. On the loop of this
  module (in a provider's method) a call raises a RuntimeError.
- A forked child has its own loop and clients, and does not use its parent's connections.
- Python starts no threads once the main thread has ended: other threads have to be joined before.
"""

from __future__ import annotations

import os
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack

from resilient_imagen import api
from resilient_imagen.api import call_options
from resilient_imagen.background_loop import BackgroundCall, background_loop, has_background_loop
from resilient_imagen.thread_callbacks import ProgressRelay, start_in_caller
from resilient_imagen.tracebacks import hide_frame_locals

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from types import TracebackType

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from resilient_imagen import client, stream
    from resilient_imagen.circuitbreaker import CircuitBreaker
    from resilient_imagen.circuitbreaker.config import BreakerConfig
    from resilient_imagen.circuitbreaker.types import BreakerMetrics, BreakerSnapshot, Transition
    from resilient_imagen.control import Order
    from resilient_imagen.health import Health
    from resilient_imagen.pipeline.on_start import OnStart
    from resilient_imagen.pipeline.progress import OnProgress, Progress
    from resilient_imagen.providers.base import Provider
    from resilient_imagen.request import AspectRatio, EditOptions, ImageOptions, Resolution
    from resilient_imagen.result import ImageDict, ImageInput, ImageResult
    from resilient_imagen.settings import Settings
    from resilient_imagen.snapshots import Snapshot
    from resilient_imagen.telemetry.sink import EventSink

__all__ = [
    "BreakerHandle",
    "ImageClient",
    "ProgressStream",
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
        on_start: Called once in this thread, when the first request is about to be sent.
        on_progress: Called in this thread with each ``Progress`` of the call.
        deadline: Seconds for the whole call: first-use imports, queueing, retries and fallback
            included. ``math.inf`` lifts a limit of ``call_options`` or IMAGE_GEN_DEADLINE.
        options: See ``ImageOptions``.

    Raises:
        ImageGenerationError: No image; ``reason`` says why. A ValueError when the request is at
            fault, a TimeoutError when time ran out.
        RuntimeError: It was called on this module's own event loop.
    """
    return _generate(
        lambda hook, progress: api.generate_image(
            prompt,
            aspect_ratio,
            model,
            resolution=resolution,
            on_start=hook,
            on_progress=progress,
            deadline=deadline,
            **options,
        ),
        api.on_start_in_force(on_start),
        api.on_progress_in_force(on_progress),
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
        on_start: Called once in this thread, when the first request is about to be sent.
        on_progress: Called in this thread with each ``Progress`` of the call.
        deadline: Seconds for the whole call, as in ``generate_image``.
        options: See ``ImageOptions``.

    Raises:
        ImageGenerationError: As ``generate_image``.
        RuntimeError: It was called on this module's own event loop.
    """
    return _generate(
        lambda hook, progress: api.generate_image_with_references(
            prompt,
            reference_images,
            aspect_ratio,
            resolution,
            model,
            on_start=hook,
            on_progress=progress,
            deadline=deadline,
            **options,
        ),
        api.on_start_in_force(on_start),
        api.on_progress_in_force(on_progress),
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
        on_start: Called once in this thread, when the first request is about to be sent.
        on_progress: Called in this thread with each ``Progress`` of the call.
        deadline: Seconds for the whole call, as in ``generate_image``.
        options: See ``EditOptions``.

    Raises:
        ImageGenerationError: As ``generate_image``; a ValueError when the image cannot be read.
        RuntimeError: It was called on this module's own event loop.
    """
    return _generate(
        lambda hook, progress: api.edit_image(
            image,
            feedback,
            aspect_ratio,
            resolution,
            model,
            on_start=hook,
            on_progress=progress,
            deadline=deadline,
            **options,
        ),
        api.on_start_in_force(on_start),
        api.on_progress_in_force(on_progress),
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

    Connections are closed before this returns, unless calls are in flight: those finish normally,
    and the last of them closes the connections. Until then the limits hold for the old client and
    for the next one separately.
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
        on_progress: OnProgress | None = None,
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
            on_progress: Called in this thread with each ``Progress`` of the call.
            options: See ``ImageOptions``.

        Raises:
            ImageGenerationError: No image; ``reason`` says why, ``attempts`` what was tried.
            RuntimeError: The client is closed, or it was called on this module's own event loop.
        """
        return _generate(
            lambda hook, progress: self._client().generate(
                prompt,
                aspect_ratio=aspect_ratio,
                references=references,
                resolution=resolution,
                model=model,
                deadline=deadline,
                on_start=hook,
                on_progress=progress,
                **options,
            ),
            on_start,
            on_progress,
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
        on_progress: OnProgress | None = None,
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
            on_progress: Called in this thread with each ``Progress`` of the call.
            options: See ``EditOptions``.

        Raises:
            InvalidRequestError: The image cannot be read.
            ImageGenerationError: No image; ``reason`` says why, ``attempts`` what was tried.
            RuntimeError: The client is closed, or it was called on this module's own event loop.
        """
        return _generate(
            lambda hook, progress: self._client().edit(
                image,
                feedback,
                aspect_ratio=aspect_ratio,
                resolution=resolution,
                model=model,
                deadline=deadline,
                on_start=hook,
                on_progress=progress,
                **options,
            ),
            on_start,
            on_progress,
        )

    @hide_frame_locals
    def stream(
        self,
        prompt: str,
        *,
        aspect_ratio: AspectRatio = "9:16",
        references: Sequence[ImageInput] = (),
        resolution: Resolution = "2K",
        model: str | None = None,
        deadline: float | None = None,
        **options: Unpack[ImageOptions],
    ) -> ProgressStream:
        """Return the progress of ``generate`` as an iterator; see ``ProgressStream``.

        Arguments are those of ``generate``. Errors are raised by the iteration.
        """
        return ProgressStream(
            lambda: self._client().stream(
                prompt,
                aspect_ratio=aspect_ratio,
                references=references,
                resolution=resolution,
                model=model,
                deadline=deadline,
                **options,
            )
        )

    @hide_frame_locals
    def stream_edit(
        self,
        image: ImageInput,
        feedback: str,
        *,
        aspect_ratio: AspectRatio = "9:16",
        resolution: Resolution = "2K",
        model: str | None = None,
        deadline: float | None = None,
        **options: Unpack[EditOptions],
    ) -> ProgressStream:
        """Return the progress of ``edit`` as an iterator; see ``ProgressStream``.

        Arguments are those of ``edit``. Errors are raised by the iteration.
        """
        return ProgressStream(
            lambda: self._client().stream_edit(
                image,
                feedback,
                aspect_ratio=aspect_ratio,
                resolution=resolution,
                model=model,
                deadline=deadline,
                **options,
            )
        )

    @property
    def breakers(self) -> Mapping[str, BreakerHandle]:
        """Each route's circuit breaker, by ``provider:model``, for operators.

        To force one open or release it, to reconfigure it or to listen, during calls.
        """
        names = _on_loop(lambda: tuple(self._client().breakers))
        return MappingProxyType({name: BreakerHandle(name, self._client) for name in names})

    def snapshot(self) -> Snapshot:
        """Return the state of every route and the costs, as plain JSON: for a health route.

        A configured route without a key is listed, too, with the cause as ``off``. ``process`` has
        the totals of all clients of this process.
        """
        return _on_loop(lambda: self._client().snapshot())

    def obey(self, order: Order) -> None:
        """Obey an operator's order until its end; see the async client."""
        _on_loop(lambda: self._client().obey(order))

    def add_sink(self, sink: EventSink) -> None:
        """Pass all further events to one more listener; see the async client."""
        _on_loop(lambda: self._client().add_sink(sink))

    def health(self) -> Health:
        """Return whether images can be delivered, for a health check; see the async client."""
        return _on_loop(lambda: self._client().health())

    def retire(self) -> None:
        """Take no more calls; close once those in flight are over, at once if there are none.

        Calls in flight finish normally, and this returns without waiting for them.
        """
        _run(lambda: self._client().retire())

    def close(self) -> None:
        """Close every connection; closing twice does no harm.

        Calls in flight, of any thread, are ended, each with a RuntimeError that states the cause.
        """
        _run(lambda: self._client().aclose())


class ProgressStream:
    """The progress of one call, which starts with the block or with the first event.

    ::

        with client.stream("a lighthouse", partial_images=2) as events:
            for progress in events:
                print(progress.kind, progress.provider)
            result = events.result()

    The iteration ends after ``done``, and raises the error of a call that fails. Leaving the block
    before that cancels the call. The image is made while the consumer works: a newer preview
    replaces an older one of the same route, and of more than 64 events the oldest are dropped.
    """

    def __init__(self, open_stream: Callable[[], stream.ProgressStream]) -> None:
        self._open_stream = open_stream
        self._stream: stream.ProgressStream | None = None

    def __enter__(self) -> Self:
        """Start the call."""
        _run(lambda: self._opened().__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Cancel the call if it has not ended."""
        self.close()

    def __iter__(self) -> Self:
        """Return the stream itself; it can be iterated once."""
        return self

    @hide_frame_locals
    def __next__(self) -> Progress:
        """Wait for the next event and return it.

        Raises:
            StopIteration: The call has its result, or the stream was closed.
            ImageGenerationError: The call has failed.
        """
        if (event := _run(self._next)) is None:
            raise StopIteration
        return event

    @hide_frame_locals
    def result(self) -> ImageResult:
        """Wait for the end of the call and return its result; events are not needed for it.

        Raises:
            ImageGenerationError: The call has failed.
            RuntimeError: The stream was closed before the call had ended.
        """
        return _run(lambda: self._opened().result())

    def close(self) -> None:
        """Cancel the call if it has not ended, and wait until its connections are closed."""
        if self._stream is not None:
            _run(self._stream.aclose)

    async def _next(self) -> Progress | None:
        return await anext(self._opened(), None)

    def _opened(self) -> stream.ProgressStream:
        if self._stream is None:
            self._stream = self._open_stream()
        return self._stream


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
"""The client that is the default one when a method is called."""


def _generate(
    function: Callable[[OnStart | None, OnProgress | None], Coroutine[Any, Any, _T]],
    on_start: OnStart | None,
    on_progress: OnProgress | None,
) -> _T:
    """Run a call that makes an image, with its callbacks called in this thread."""
    call: BackgroundCall[_T] = BackgroundCall()
    hook, progress = on_start, on_progress  # None, or a mistake that the client reports
    if callable(on_start):
        hook = start_in_caller(on_start, call)
    if callable(on_progress):
        progress = ProgressRelay(on_progress, call)
    return call.run(background_loop(api.reset_default_client), lambda: function(hook, progress))


def _run(function: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    return BackgroundCall[_T]().run(background_loop(api.reset_default_client), function)


def _on_loop(function: Callable[[], _T]) -> _T:
    async def call() -> _T:
        return function()

    return _run(call)
