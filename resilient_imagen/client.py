"""The client: owns providers, breakers, queues and their lifetime; every call starts here."""

from __future__ import annotations

import asyncio
import math
import random
import sys
from contextvars import Context
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, Unpack, cast

from resilient_imagen import models
from resilient_imagen.candidate import CandidateEvaluator
from resilient_imagen.control.controller import Controller
from resilient_imagen.cost import PROCESS_COSTS, CostLedger
from resilient_imagen.errors import (
    ImageGenerationError,
    InvalidRequestError,
)
from resilient_imagen.health import assess
from resilient_imagen.inflight import CallsInFlight
from resilient_imagen.pipeline.attempt import AttemptExecutor
from resilient_imagen.pipeline.call_state import CallState, new_id
from resilient_imagen.pipeline.deadline import Deadline
from resilient_imagen.pipeline.fitter import ImageFitter
from resilient_imagen.pipeline.hedge import OverlapPolicy
from resilient_imagen.pipeline.inputs import InputLoader
from resilient_imagen.pipeline.on_start import OnStartHook
from resilient_imagen.pipeline.pipeline import Pipeline
from resilient_imagen.pipeline.progress import ProgressReporter
from resilient_imagen.pipeline.router import Router
from resilient_imagen.pipeline.step import steps_for_edit
from resilient_imagen.providers import collect_providers
from resilient_imagen.providers.base import endpoint_of
from resilient_imagen.providers.vendor_options import check_protected_fields, check_vendors
from resilient_imagen.request import (
    EditOptions,
    ImageOptions,
    ImageRequest,
    check_option_names,
    shown,
)
from resilient_imagen.settings import Settings
from resilient_imagen.stream import ProgressStream
from resilient_imagen.telemetry import default_sinks
from resilient_imagen.telemetry.dispatcher import SinkDispatcher
from resilient_imagen.telemetry.events import OperatorWarning, now
from resilient_imagen.telemetry.minutes import MinuteCounters
from resilient_imagen.telemetry.settings_report import SettingsReporter
from resilient_imagen.tracebacks import clear_frame_locals, hide_frame_locals

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from types import TracebackType

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from resilient_imagen.circuitbreaker import CircuitBreaker
    from resilient_imagen.control import Order
    from resilient_imagen.control.control_file import ControlFile
    from resilient_imagen.distributed import RedisCoordinator, SharedOrders
    from resilient_imagen.health import Health
    from resilient_imagen.pipeline.on_start import OnStart
    from resilient_imagen.pipeline.progress import OnProgress
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.step import Step
    from resilient_imagen.providers.base import Provider
    from resilient_imagen.request import AspectRatio, RequestOptions, Resolution
    from resilient_imagen.result import Attempt, ImageInput, ImageResult
    from resilient_imagen.snapshots import Snapshot
    from resilient_imagen.telemetry.sink import EventSink

__all__ = ["ImageClient"]

_BEFORE_BUILDING: Final = 1.0
"""Seconds from the first image until other SDKs are built: a program for one image has ended."""

_retiring: Final[set[asyncio.Task[None]]] = set()
"""Tasks that close clients later. The event loop itself keeps weak references only."""


class ImageClient:
    """Requests images from providers, in order: the client with all that makes this reliable.

    A client made by hand owns its state; nothing is shared with the drop-in functions' default
    client. It belongs to one running event loop at a time; a loop in another thread needs its own.

    Args:
        settings: The settings; read from the environment when None.
        providers: Providers of your own, found by name in IMAGE_GEN_ROUTES. One named ``google``
            or ``openai`` stands in for the built-in one.
        sinks: More listeners for events, beside OpenTelemetry and structlog.
        tracer_provider: For spans; the global one when None.
        meter_provider: For metrics; the global one when None.

    Raises:
        ConfigurationError: A setting is not allowed, no route can be used at all, or two providers
            have the same name.
        TypeError: ``settings`` is not Settings, or a provider of your own lacks its name or a
            method.
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
        self.settings: Settings = Settings() if settings is None else settings
        if not isinstance(self.settings, Settings):
            raise TypeError(f"settings must be Settings, not {type(settings).__name__}")
        built_in = default_sinks(
            tracer_provider, meter_provider, capture_content=self.settings.capture_content
        )
        self._shadow = CandidateEvaluator(self.settings) if self.settings.shadow else None
        shadows = [] if self._shadow is None else [self._shadow]
        self._dispatcher = SinkDispatcher([*built_in, *(sinks or ()), *shadows])
        if self._shadow is not None:
            self._shadow.emit_to(self._dispatcher)
        for warning in self.settings.warnings:
            self._warn("unknown_variable", warning)
        usable = collect_providers(self.settings, providers or (), self._warn)
        self._coordinator = _new_coordinator(self.settings, usable.values(), self._warn)
        if self._coordinator is not None:
            counters = MinuteCounters()
            self._dispatcher.add(counters)
            self._coordinator.take_counters = counters.take
        self._routing = Router(self.settings, usable, self._dispatcher, self._coordinator)
        attempts = AttemptExecutor(
            self._dispatcher,
            ImageFitter(self.settings.fit),
            OverlapPolicy(self.settings),
            self._routing.routes_of_provider,
        )
        self._pipeline = Pipeline(self.settings, attempts, self._dispatcher, random.random)
        self._control = Controller(
            self.settings,
            self._routing,
            self._pipeline,
            self._dispatcher,
            None if self._coordinator is None else self._coordinator.expect_changes,
        )
        control = self._control  # not self: a client without cycles is freed with its thread
        self._settings_report = SettingsReporter(
            lambda: control.effective,
            [route.breaker for route in self._routing.routes],
            self._dispatcher,
        )
        self._control_file = self._open_control_file()
        self._shared_orders = self._share_orders()
        self._inputs = InputLoader(
            self._routing.image_limits, self._dispatcher, strict=self.settings.strict_references
        )
        self._spending = CostLedger()
        self._in_flight = CallsInFlight()
        self._building: asyncio.Task[None] | None = None
        self._built_on: asyncio.AbstractEventLoop | None = None
        self._closed = False
        """Whether it takes no more calls."""
        self._closing = False

    async def __aenter__(self) -> Self:
        """Return the client itself; nothing is connected yet."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Close every connection."""
        await self.aclose()

    @hide_frame_locals
    async def warm_up(self) -> None:
        """Build the SDK clients, in threads, and join the fleet; the first call does it otherwise.

        Raises:
            ConfigurationError: The Redis of IMAGE_GEN_REDIS_URL is there and refuses us.
        """
        if self._control_file is not None:
            self._control_file.start()
        await asyncio.gather(self._join(), *(route.warm_up() for route in self._routing.routes))

    async def _join(self, deadline: float = math.inf) -> None:
        if self._coordinator is not None:
            await self._coordinator.ready(deadline)

    @hide_frame_locals
    async def generate(
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
        """Generate one image.

        Args:
            prompt: The description of the image.
            aspect_ratio: Width to height, one of ``request.ASPECT_RATIOS``.
            references: Images to be guided by: dicts with ``image_base64`` or ``image_url``,
                data URLs, http(s) URLs, bytes or paths (``pathlib.Path``; a str is never taken
                for one, as it may come from a stranger).
            resolution: ``1K``, ``2K`` or ``4K``.
            model: Replaces the first route's model for this call.
            deadline: Seconds for the whole call, queueing, retries and fallback included; None for
                that of the settings, ``math.inf`` for no limit.
            on_start: Called once, when the first request is about to be sent.
            on_progress: Called with each ``Progress`` of the call.
            options: See ``ImageOptions``.

        Raises:
            ImageGenerationError: No image; ``reason`` says why, ``attempts`` what was tried.
        """
        check_option_names(options, ImageOptions)
        steps = self._routing.steps_for(model, options.pop("routes", None))
        others = cast("RequestOptions", options)
        request = ImageRequest(prompt, aspect_ratio, resolution, **others)
        return await self._serve(request, references, steps, deadline, on_start, on_progress)

    @hide_frame_locals
    async def edit(
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
            image: base64, a data URL, bytes, a path (``pathlib.Path``; a str is never taken for
                one), an http(s) URL, an ``ImageResult`` or its dict.
            feedback: What to change.
            aspect_ratio: Width to height, one of ``request.ASPECT_RATIOS``.
            resolution: ``1K``, ``2K`` or ``4K``.
            model: Replaces the first route's model for this call.
            deadline: Seconds for the whole call; None for that of the settings, ``math.inf`` for no
                limit.
            on_start: Called once, when the first request is about to be sent.
            on_progress: Called with each ``Progress`` of the call.
            options: See ``EditOptions``.

        Raises:
            InvalidRequestError: The image or the mask cannot be read, no route takes images, or
                no route supports a mask.
            ImageGenerationError: No image; ``reason`` says why, ``attempts`` what was tried.
        """
        check_option_names(options, EditOptions)
        mask = options.pop("mask", None)
        steps = self._routing.steps_for(model, options.pop("routes", None))
        steps = steps_for_edit(steps, has_mask=mask is not None)
        others = cast("RequestOptions", options)
        request = ImageRequest(feedback, aspect_ratio, resolution, operation="edit", **others)
        return await self._serve(request, [image], steps, deadline, on_start, on_progress, mask)

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
        """Return the progress of ``generate`` as an asynchronous iterator; see ``ProgressStream``.

        Arguments are those of ``generate``. Errors are raised by the iteration.
        """
        return ProgressStream(
            lambda on_progress: self.generate(
                prompt,
                aspect_ratio=aspect_ratio,
                references=references,
                resolution=resolution,
                model=model,
                deadline=deadline,
                on_progress=on_progress,
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
        """Return the progress of ``edit`` as an asynchronous iterator; see ``ProgressStream``.

        Arguments are those of ``edit``. Errors are raised by the iteration.
        """
        return ProgressStream(
            lambda on_progress: self.edit(
                image,
                feedback,
                aspect_ratio=aspect_ratio,
                resolution=resolution,
                model=model,
                deadline=deadline,
                on_progress=on_progress,
                **options,
            )
        )

    async def _serve(
        self,
        request: ImageRequest,
        references: Sequence[ImageInput],
        steps: tuple[Step, ...],
        deadline: float | None,
        on_start: OnStart | None,
        on_progress: OnProgress | None,
        mask: ImageInput | None = None,
    ) -> ImageResult:
        if self._closed:
            raise RuntimeError("this ImageClient is closed; make a new one")
        handled = id(sys.exception())
        call = self._open(request, steps, deadline, on_start, on_progress)
        self._settings_report.report_if_due(call.started)
        self._dispatcher.emit(call.started_event())
        try:
            prepare = None
            if references or mask is not None or self._coordinator is not None:
                prepare = partial(self._prepare, call, references, mask)
            served = await self._pipeline.run(call, prepare, self._in_flight)
            result = served.result(call)
            if call.progress is not None:
                call.progress.done(result)
        except BaseException as error:
            clear_frame_locals(error, up_to=handled)
            self._dispatcher.emit(call.ended_event(result=None, error=error))
            if call.progress is not None:
                await call.progress.finish()
            raise
        finally:
            # Each failure that a retry or the next route made up for is a variable of frames that
            # it keeps, so that nothing of the call would ever be freed by counting references.
            call.ended = True
            if recovered := (*call.failures, *call.route_errors.values()):
                clear_frame_locals(*recovered, up_to=handled)
            for total in (self._spending, PROCESS_COSTS):
                total.add(call.attempts, request.resolution)
        for failure in recovered:
            # From Python 3.12 on, the frame of a finished coroutine keeps this one.
            failure.__traceback__ = None
        self._dispatcher.emit(call.ended_event(result=result, error=None))
        self._build_the_rest_later(served.route, call.loop)
        if call.progress is not None:
            await call.progress.finish()
        return result

    def _build_the_rest_later(self, served: Route, loop: asyncio.AbstractEventLoop) -> None:
        """Build the other routes' SDKs beside the calls: a fallback that is needed is ready then.

        Once per event loop, after its first image: until then nothing may slow that one down.
        """
        if self._built_on is loop:
            return
        self._built_on = loop
        routes = self._routing.routes
        rest = [route for route in routes if route is not served and route.warms_up]
        if rest:  # in a context of its own: that of the call would be kept for as long
            self._building = loop.create_task(self._build(rest), context=Context())

    async def _build(self, routes: Sequence[Route]) -> None:
        await asyncio.sleep(_BEFORE_BUILDING)
        for route in routes:
            try:
                await route.warm_up()
            except Exception as error:  # noqa: BLE001 - whichever call needs the route meets it again
                what = error if isinstance(error, ImageGenerationError) else type(error).__name__
                self._warn("route_not_ready", f"{route.name} cannot be used: {what}")

    def _share_orders(self) -> SharedOrders | None:
        if self._coordinator is None:
            return None
        from resilient_imagen.distributed import SharedOrders

        deliver = partial(
            self._control.receive_stored, namespace=self._coordinator.address.namespace
        )
        return SharedOrders(self._coordinator, deliver, self._control.report)

    def _open_control_file(self) -> ControlFile | None:
        if self.settings.control_file is None or not self._control.enabled:
            return None
        from resilient_imagen.control.control_file import NAMESPACE, ControlFile

        deliver = partial(self._control.receive, namespace=NAMESPACE)
        return ControlFile(
            Path(self.settings.control_file), deliver, self._control.report, self._warn
        )

    def _warn(self, code: str, message: str) -> None:
        self._dispatcher.emit(OperatorWarning(code=code, message=message))

    async def _prepare(
        self, call: CallState, references: Sequence[ImageInput], mask: ImageInput | None
    ) -> None:
        if self._coordinator is not None:
            with call.spending("connecting to Redis"):
                await self._join(call.deadline.at)
        if references or mask is not None:
            await self._inputs.load(call, references, mask)

    def _open(
        self,
        request: ImageRequest,
        steps: tuple[Step, ...],
        deadline: float | None,
        on_start: OnStart | None,
        on_progress: OnProgress | None,
    ) -> CallState:
        if on_start is not None and not callable(on_start):
            raise InvalidRequestError("on_start must be callable, or None")
        if on_progress is not None and not callable(on_progress):
            raise InvalidRequestError("on_progress must be callable, or None")
        if request.partial_images and on_progress is None:
            raise InvalidRequestError(
                f"partial_images {request.partial_images} has no receiver; pass on_progress or use "
                "stream"
            )
        self._control.catch_up()
        if self._control_file is not None:
            self._control_file.start()
        loop = asyncio.get_running_loop()
        started = loop.time()
        seconds = _checked_deadline(self.settings.deadline if deadline is None else deadline)
        self._routing.check_deadline(seconds)
        self._check_vendor_options(request)
        return CallState(
            id=new_id(),
            request=request,
            steps=steps,
            started=started,
            deadline=Deadline.after(seconds, started),
            on_start=None if on_start is None else OnStartHook(on_start),
            progress=None if on_progress is None else ProgressReporter(on_progress),
            on_late_attempt=partial(self._count_late, request.resolution),
            orders=self._control.in_force,
            loop=loop,
        )

    def _check_vendor_options(self, request: ImageRequest) -> None:
        """Check the options for every vendor now: a fallback must not fail because of them."""
        if request.vendor_options is None:
            return
        providers = self._routing.providers
        vendors = {endpoint_of(provider).vendor for provider in providers}
        check_vendors(request, vendors | models.VENDORS)
        for provider in providers:
            protected: Collection[str] = getattr(provider, "protected_fields", ())
            check_protected_fields(request, endpoint_of(provider).vendor, protected)

    def _count_late(self, resolution: str, attempt: Attempt) -> None:
        """Count the cost of a request that ended after its call."""
        for total in (self._spending, PROCESS_COSTS):
            total.add([attempt], resolution)

    @property
    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """Each route's circuit breaker, by ``provider:model``, for operators.

        It can be forced open, reconfigured or subscribed to while calls are in flight.
        """
        return self._routing.breakers

    def snapshot(self) -> Snapshot:
        """Return the state of every route and the costs, as plain JSON: for a health route.

        A configured route without a key is listed, too, with the cause as ``off``. ``process`` has
        the totals of all clients of this process.
        """
        return {
            "routes": self._routing.snapshot(),
            **self._spending.snapshot(),
            "process": PROCESS_COSTS.snapshot(),
            "hedging": self._pipeline.snapshot(now()),
            "fleet": None if self._coordinator is None else self._coordinator.snapshot(),
            "shadow": None if self._shadow is None else self._shadow.snapshot(),
            "control": self._control.snapshot(),
        }

    def obey(self, order: Order) -> None:
        """Obey an operator's order until its end: hold a circuit, or change a setting.

        It concerns this client only, needs no signature, and is called on the client's event loop.
        ``snapshot()["control"]`` lists the orders in force.

        Args:
            order: See ``control.new_order``.

        Raises:
            ConfigurationError: The order does not fit to this client, IMAGE_GEN_CONTROL is off, or
                a route stays open after a failure of its account. The text has the cause.
        """
        self._control.obey(order)

    def add_sink(self, sink: EventSink) -> None:
        """Pass all further events to one more listener, as with ``sinks`` at construction.

        It receives the rest of calls in flight, whose beginning it has missed.
        """
        self._dispatcher.add(sink)

    def health(self) -> Health:
        """Return whether images can be delivered, for a health check; it sends no request.

        ``status`` is ``ok``, ``degraded`` (the primary does not serve, but another route does) or
        ``down``; ``reasons`` has a sentence about each route that does not serve. Routes for models
        that callers name do not count.
        """
        if self._closed:
            return {"status": "down", "reasons": ["the client is closed"]}
        router = self._routing
        return assess(router.configured_snapshot(), router.primary, router.names_in_use)

    async def retire(self) -> None:
        """Take no more calls; close once those in flight are over, at once if there are none.

        Calls in flight finish normally, and this returns without waiting for them. Should the event
        loop end before they do, they are cancelled and the client is closed.
        """
        self._closed = True
        if not self._in_flight:
            await self.aclose()
            return
        task = asyncio.create_task(self._close_when_idle(), context=Context())
        _retiring.add(task)
        task.add_done_callback(_retiring.discard)

    async def _close_when_idle(self) -> None:
        try:
            await self._in_flight.drained()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; closing twice does no harm.

        Calls in flight are ended, each with a RuntimeError that says so.
        """
        if self._closing:
            return
        self._closed = self._closing = True
        self._control.close()
        if self._control_file is not None:
            self._control_file.close()
        try:
            await self._in_flight.end()
            await self._pipeline.background.aclose()
            if (
                self._building is not None
                and self._building.get_loop() is asyncio.get_running_loop()
            ):
                self._building.cancel()
                await asyncio.wait({self._building})
        finally:  # connections are closed although the caller may not wait for the calls' end
            await self._close_everything()

    async def _close_everything(self) -> None:
        closing = [*map(_close, self._routing.providers), self._inputs.aclose()]
        if self._coordinator is not None:
            closing.append(self._coordinator.aclose())
        ends = await asyncio.gather(*closing, return_exceptions=True)
        await self._dispatcher.close()
        for end in ends:
            if isinstance(end, BaseException):
                raise end  # after everything else was closed


async def _close(provider: Provider) -> None:
    closing: Any = provider.aclose()
    if isawaitable(closing):
        await closing


def _new_coordinator(
    settings: Settings, providers: Iterable[Provider], warn: Callable[[str, str], None]
) -> RedisCoordinator | None:
    if settings.redis_url is None:
        return None
    from resilient_imagen.distributed import Address, RedisCoordinator

    accounts = {provider.name: endpoint_of(provider).account for provider in providers}
    address = Address.parse(settings.redis_url.get_secret_value())
    return RedisCoordinator(address, warn, accounts=accounts)


def _checked_deadline(seconds: float | None) -> float:
    if seconds is None:
        return math.inf
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds > 0:
        raise InvalidRequestError(
            f"deadline must be a number of seconds above zero, or None, not {shown(seconds)}"
        )
    return seconds
