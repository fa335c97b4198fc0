"""The synchronous functions and client: one loop for all threads, callbacks in the caller's."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import inspect
import logging
import random
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest
import structlog
from images_samples import as_dict, png
from memory_kit import PROMPT, WatchedPrompt, without_cycle_collector
from telemetry_kit import Telemetry

import resilient_imagen as ri
from resilient_imagen import api, background_loop, client, sync
from resilient_imagen.circuitbreaker import BreakerState, Transition
from resilient_imagen.emulator import BackgroundEmulator, faults
from resilient_imagen.request import ImageRequest
from resilient_imagen.testing import FakeProvider, RecordingSink

PATIENCE = 60.0
"""Seconds after which a test is taken for hanging."""
SETTINGS: dict[str, Any] = {"routes": "google:pro", "ipm": 600_000, "max_retries": 0}


@pytest.fixture
def google() -> FakeProvider:
    return FakeProvider("google", latency=0.01)


@pytest.fixture
def images(google: FakeProvider) -> Iterator[sync.ImageClient]:
    """Return a client whose only provider is ``google``."""
    with sync.ImageClient(ri.Settings(**SETTINGS), providers=[google]) as made:
        yield made


@pytest.fixture
def vendors(
    vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BackgroundEmulator]:
    """Both vendors, and the default client of all threads, which does not retry."""
    monkeypatch.setenv("IMAGE_GEN_MAX_RETRIES", "0")
    yield vendors
    sync.reset_default_client()


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Return the results of ``work`` in this many concurrent threads."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, range(count)))


def until(true: Callable[[], bool]) -> None:
    """Wait until a condition without a notification is true."""
    for _ in range(int(PATIENCE / 0.01)):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came true")


# -- the same surface -----------------------------------------------------------------------------


def parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


@pytest.mark.parametrize("name", sorted(api.__all__))
def test_the_functions_have_the_signatures_of_the_async_api(name: str) -> None:
    """Names, order, defaults and annotations are equal; none is a coroutine function."""
    ours = getattr(sync, name)
    assert parameters(ours) == parameters(getattr(api, name))
    assert not inspect.iscoroutinefunction(ours)


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_the_client_has_the_methods_of_the_async_client() -> None:
    """The signatures are equal; ``aclose`` is called ``close``."""
    assert public(sync.ImageClient) - {"settings"} == (public(ri.ImageClient) - {"aclose"}) | {
        "close"
    }
    for name in ("__init__", "warm_up", "generate", "edit", "snapshot", "retire"):
        ours = getattr(sync.ImageClient, name)
        assert parameters(ours) == parameters(getattr(ri.ImageClient, name)), name
        assert not inspect.iscoroutinefunction(ours)


def test_the_functions_return_the_results_of_the_async_api(vendors: BackgroundEmulator) -> None:
    """Both real SDKs return an image, one with references, an edit and a fallback."""
    first = sync.generate_image("a red dragon", "16:9")
    assert (first["provider"], first["mime_type"]) == ("google", "image/jpeg")
    sync.generate_image_with_references("the same", [as_dict(png())], "9:16", "2K")
    sync.edit_image(first, "more snow")
    plain, guided, edited = vendors.google.requests
    assert (plain.aspect_ratio, guided.resolution) == ("16:9", "2K")
    assert (len(guided.references), len(edited.references)) == (1, 1)
    vendors.google.set(faults.status(503))
    assert sync.generate_image("again")["fallback_reason"] == "overloaded"
    totals = sync.default_client().snapshot()
    assert (totals["images"], totals["routes"][0]["breaker"]["consecutive"]) == (4, 1)


def test_errors_are_those_of_the_async_api(vendors: BackgroundEmulator) -> None:
    """Class, message, reason and attempts of errors are those of the async API."""
    vendors.google.set(faults.status(503))
    vendors.openai.set(faults.status(500))
    with pytest.raises(ri.AllProvidersFailedError, match="503 UNAVAILABLE") as caught:
        sync.generate_image("x")
    assert caught.value.reason is ri.Reason.OVERLOADED
    assert [each.provider for each in caught.value.attempts] == ["google", "openai"]
    with pytest.raises(ri.InvalidRequestError, match="prompt must be"):
        sync.generate_image("")
    with pytest.raises(ri.InvalidRequestError, match="on_start must be"):
        sync.generate_image("x", on_start=3)  # type: ignore[arg-type]


def test_reset_closes_connections_and_reads_the_environment_again(
    vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections are closed, and a changed variable applies from the next use on."""
    sync.generate_image("x")
    assert vendors.open_connections == 1
    monkeypatch.setenv("IMAGE_GEN_BREAKER_FAIL_MAX", "7")
    sync.reset_default_client()
    vendors.wait_until(lambda: vendors.open_connections == 0)
    assert sync.default_client().settings.breaker_fail_max == 7
    assert sync.default_client() is sync.default_client()


def test_a_missing_key_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions and ``default_client`` raise the async API's error."""
    for use in (sync.default_client, lambda: sync.generate_image("x")):
        with pytest.raises(ri.ConfigurationError, match="GOOGLE_GENAI_API_KEY or OPENAI_API_KEY"):
            use()


def test_a_closed_client_takes_no_calls(images: sync.ImageClient) -> None:
    """Closing twice is allowed; a retired client is closed, too."""
    images.warm_up()
    images.generate("x")
    images.retire()
    images.close()
    with pytest.raises(RuntimeError, match="closed"):
        images.generate("x")


def test_closing_ends_the_calls_of_other_threads(
    images: sync.ImageClient, google: FakeProvider
) -> None:
    """Each call raises a RuntimeError with the cause."""
    google.hang()
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(images.generate, "x")
        until(lambda: google.in_flight == 1)
        images.close()
        with pytest.raises(RuntimeError, match="closed during the call"):
            call.result(PATIENCE)


def test_breakers_can_be_operated_from_any_thread(
    images: sync.ImageClient, google: FakeProvider
) -> None:
    """An operator can force open, reconfigure and observe breakers from any thread."""
    (breaker,) = images.breakers.values()
    seen: list[Transition] = []
    unsubscribe = breaker.subscribe(seen.append)
    breaker.force_open = True
    assert breaker.force_open
    assert not breaker.allows_calls()
    with pytest.raises(ri.CircuitOpenError):
        images.generate("x")
    breaker.force_open = False
    images.generate("x")
    breaker.open_for(500, cause="operator", summary=None)
    assert breaker.metrics().state is BreakerState.OPEN
    assert breaker.snapshot()["name"] == breaker.name == "google:pro"
    until(lambda: len(seen) == 3)
    unsubscribe()


# -- one client for all threads -------------------------------------------------------------------


def test_all_threads_share_one_rate_limit(vendors: BackgroundEmulator) -> None:
    """64 calls of 16 threads are sent no faster than one client may send them."""
    pace = 1 / 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGE_GEN_IPM", str(60 / pace))
        in_threads(16, lambda _: [sync.generate_image("x") for _ in range(4)])
    times = sorted(request.time for request in vendors.google.requests)
    assert len(times) == 64
    assert times[-1] - times[0] >= 63 * pace * 0.9
    assert vendors.google.max_in_flight <= 4


def test_all_threads_share_one_breaker(vendors: BackgroundEmulator) -> None:
    """An outage opens it once, after as many failures as for one client."""
    vendors.google.set(faults.status(503))
    seen: list[Transition] = []
    breaker = sync.default_client().breakers["google:gemini-3-pro-image"]
    breaker.subscribe(seen.append)
    results = in_threads(16, lambda _: [sync.generate_image("x") for _ in range(4)])
    providers = {result["provider"] for each in results for result in each}
    assert providers == {"openai"}
    assert len(vendors.google.requests) <= 3 + 4  # what opened it, and what was in flight
    until(lambda: bool(seen))
    assert [each.to_state for each in seen] == [BreakerState.OPEN]


def test_each_call_is_one_trace_below_the_callers_span(google: FakeProvider) -> None:
    """Each of sixteen threads has its call's trace below its own span."""
    telemetry = Telemetry()
    tracer = telemetry.tracers.get_tracer("application")
    made = sync.ImageClient(
        ri.Settings(**SETTINGS), providers=[google], tracer_provider=telemetry.tracers
    )

    def view(_: int) -> tuple[int, int]:
        with tracer.start_as_current_span("view") as span:
            made.generate("x")
            context = span.get_span_context()
            return context.trace_id, context.span_id

    with made:
        views = in_threads(16, view)
    roots = [
        span for span in telemetry.exporter.get_finished_spans() if span.name == "imagegen.generate"
    ]
    parents = [(root.context.trace_id, root.parent and root.parent.span_id) for root in roots]
    assert sorted(parents) == sorted(views)


def test_the_callers_context_variables_are_in_force(google: FakeProvider) -> None:
    """Provider and structlog see the context variables of the calling thread."""
    tenant: ContextVar[int] = ContextVar("tenant")
    seen: list[tuple[str, int]] = []

    class Noting(FakeProvider):
        async def generate(self, request: ImageRequest, model: str) -> ri.ProviderResult:
            seen.append((request.prompt, tenant.get()))
            return await super().generate(request, model)

    lines: list[Any] = []

    def keep(_logger: object, _name: str, event: Any) -> Any:
        lines.append(event)
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    made = sync.ImageClient(ri.Settings(**SETTINGS), providers=[Noting("google", latency=0.01)])

    def call(number: int) -> None:
        tenant.set(number)
        with structlog.contextvars.bound_contextvars(tenant=number):
            made.generate(str(number))

    with made:
        in_threads(8, call)
    assert sorted(seen) == [(str(number), number) for number in range(8)]
    completed = [line["tenant"] for line in lines if line["event"] == "imagegen.request.completed"]
    assert sorted(completed) == list(range(8))


def test_call_options_cross_to_the_shared_loop(vendors: BackgroundEmulator) -> None:
    """Deadline and callback of a block apply; an argument of the call overrides them."""
    sync.generate_image("first, so that nothing is loaded below")
    vendors.google.set(faults.hang())
    vendors.openai.set(faults.hang())
    started: list[tuple[str, threading.Thread]] = []

    def on_start(name: str) -> Callable[[], None]:
        return lambda: started.append((name, threading.current_thread()))

    with sync.call_options(deadline=0.5, on_start=on_start("options")):
        with pytest.raises(ri.DeadlineExceededError):
            sync.generate_image("x")
        with pytest.raises(TimeoutError):
            sync.generate_image("x", on_start=on_start("argument"))
    here = threading.current_thread()
    assert started == [("options", here), ("argument", here)]


def test_many_calls_of_many_threads_leave_nothing_behind(
    images: sync.ImageClient, google: FakeProvider
) -> None:
    """1,000 calls of 50 threads, some failing, leave no task, thread or request."""
    google.latency = 0.001
    images.generate("first, which starts what stays")
    (shared,) = [each for each in threading.enumerate() if each.name == "resilient-imagen-loop"]
    before = set(threading.enumerate())

    def calls(_: int) -> int:
        done = 0
        for number in range(20):
            with suppress(ri.InvalidRequestError):
                images.generate("x" if number % 5 else "", on_start=lambda: None)
                done += 1
        return done

    assert sum(in_threads(50, calls)) == 800
    assert set(threading.enumerate()) == before
    assert shared in before
    assert tasks() == 1, "the one that waits for the end"
    (route,) = images.snapshot()["routes"]
    assert (route["queue"]["in_flight"], route["queue"]["waiting"]) == (0, 0)


def tasks() -> int:
    """Return the tasks on the shared loop, except this one and those of clients."""

    async def count() -> int:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        return len(others)

    return sync._run(count)


# -- callbacks ------------------------------------------------------------------------------------


async def hangs() -> None:
    await asyncio.Event().wait()


def fails() -> None:
    raise ValueError("mine")


async def fails_later() -> None:
    await asyncio.sleep(0)
    raise ValueError("mine")


@pytest.mark.parametrize("callback", [fails, fails_later, hangs], ids=lambda each: each.__name__)
@pytest.mark.parametrize("inside", ["a plain thread", "a running loop"])
def test_a_failing_or_hanging_callback_does_not_affect_the_call(
    images: sync.ImageClient,
    callback: Callable[[], Awaitable[None] | None],
    inside: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The image is returned; one record states that ``on_start`` failed or was cancelled."""

    def call() -> ri.ImageResult:
        return images.generate("x", on_start=callback)

    async def cell() -> ri.ImageResult:
        return call()

    images.generate("first, which starts the threads that stay")
    before = threading.active_count()
    with caplog.at_level(logging.WARNING, "resilient_imagen"):
        result = call() if inside == "a plain thread" else asyncio.run(cell())
    assert result.provider == "google"
    (line,) = [each.getMessage() for each in caplog.records if each.name == "resilient_imagen"]
    assert line.startswith("on_start")
    assert threading.active_count() == before


def test_an_async_callback_runs_in_the_calling_thread(images: sync.ImageClient) -> None:
    """It runs on a separate loop, and the current loop of the thread is unchanged."""
    current = asyncio.new_event_loop()
    asyncio.set_event_loop(current)
    seen: list[threading.Thread] = []

    async def on_start() -> None:
        await asyncio.sleep(0)
        seen.append(threading.current_thread())

    try:
        images.generate("x", on_start=on_start)
        assert seen == [threading.current_thread()]
        assert asyncio.get_event_loop_policy().get_event_loop() is current
    finally:
        asyncio.set_event_loop(None)
        current.close()


def test_an_async_callback_runs_beside_a_running_loop(images: sync.ImageClient) -> None:
    """It runs in a thread with the caller's context, because loops cannot be nested."""
    tenant: ContextVar[str] = ContextVar("tenant")
    seen: list[str] = []

    async def on_start() -> None:
        seen.append(tenant.get())

    async def cell() -> None:
        tenant.set("mine")
        images.generate("x", on_start=on_start)

    asyncio.run(cell())
    assert seen == ["mine"]


def test_the_image_is_made_while_a_callback_blocks(
    images: sync.ImageClient, google: FakeProvider
) -> None:
    """A slow callback delays only the return of its call."""

    def on_start() -> None:
        until(lambda: bool(google.sent) and google.in_flight == 0)
        images.generate("another, meanwhile")

    images.generate("x", on_start=on_start)
    assert len(google.sent) == 2


def test_a_callback_may_end_the_program(images: sync.ImageClient, google: FakeProvider) -> None:
    """SystemExit propagates, and the request is cancelled."""
    google.hang()

    def on_start() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        images.generate("x", on_start=on_start)
    until(lambda: google.in_flight == 0)


# -- interruptions --------------------------------------------------------------------------------


class Enough(Exception):  # noqa: N818 - as applications name theirs
    """An exception that is raised into a waiting thread."""


def test_an_exception_raised_into_the_thread_cancels_its_call(
    images: sync.ImageClient, google: FakeProvider
) -> None:
    """The call of another thread continues."""
    google.hang()
    caught: list[BaseException] = []

    def call() -> None:
        try:
            images.generate("x")
        except BaseException as error:  # noqa: BLE001 - it is what the test looks at
            caught.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: google.in_flight == 2)
    ident = ctypes.c_ulong(threads[0].ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Enough))
    threads[0].join(PATIENCE)
    assert [type(error) for error in caught] == [Enough]
    assert google.in_flight == 1
    images.close()
    threads[1].join(PATIENCE)


@pytest.mark.no_cover
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_at_any_moment_leaves_nothing_behind(
    images: sync.ImageClient, google: FakeProvider
) -> None:
    """300 calls are interrupted somewhere between their first step and their thread's end."""
    google.latency = 0.0005
    images.generate("first, which starts the threads that stay")
    chance = random.Random(7)
    interrupted = 0

    def call(ready: threading.Event) -> None:
        nonlocal interrupted
        try:
            ready.set()
            images.generate("x", on_start=int)
        except Enough:
            interrupted += 1

    for _ in range(300):
        ready = threading.Event()
        thread = threading.Thread(target=call, args=(ready,))
        thread.start()
        ready.wait(PATIENCE)
        for _ in range(chance.randrange(3000)):
            pass  # up to some tenths of a millisecond, which a call takes
        ident = ctypes.c_ulong(thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Enough))
        thread.join(PATIENCE)
        assert not thread.is_alive()
    until(lambda: google.in_flight == 0 and tasks() == 1)
    assert interrupted > 0
    assert images.generate("x").provider == "google"


def test_a_call_on_the_shared_loop_is_refused() -> None:
    """A provider that calls the synchronous functions would deadlock."""

    class Nested(FakeProvider):
        async def generate(self, request: ImageRequest, model: str) -> ri.ProviderResult:
            made.generate("inside")
            raise AssertionError

    made = sync.ImageClient(ri.Settings(**SETTINGS), providers=[Nested("google")])
    with made, pytest.raises(RuntimeError, match="on its own event loop"):
        made.generate("x")


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_a_provider_that_ends_the_program_ends_one_call(
    images: sync.ImageClient, google: FakeProvider, ending: type[BaseException]
) -> None:
    """The shared loop continues for all other calls."""
    google.crash(ending(), times=1)
    with pytest.raises(RuntimeError if ending is asyncio.CancelledError else ending):
        images.generate("x")
    assert images.generate("x").provider == "google"


# -- what an error keeps --------------------------------------------------------------------------


def rendered(error: BaseException) -> str:
    """Return the traceback with local variables, without this file's own frames."""
    stack = traceback.TracebackException.from_exception(error, capture_locals=True).stack
    return "".join(f"{each.name} {each.locals}" for each in stack if each.filename != __file__)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["failed", "refused", "interrupted"])
def test_an_error_keeps_no_data_of_the_call(
    images: sync.ImageClient, google: FakeProvider, how: str
) -> None:
    """Neither its frames nor the shared loop keep the prompt."""
    google.fail(ri.Reason.OVERLOADED, status=503, latency=0)
    options: dict[str, Any] = {"on_start": interrupt} if how == "interrupted" else {}
    if how == "refused":
        options["aspect_ratio"] = "9:17"
    images.generate  # noqa: B018 - bound methods are made before anything is counted
    with without_cycle_collector():
        prompt = WatchedPrompt(PROMPT)
        watch = weakref.ref(prompt)
        try:
            images.generate(prompt, **options)
        except BaseException as error:  # noqa: BLE001 - a KeyboardInterrupt is one of them
            kept = error
        del prompt
        google.sent.clear()
        images.snapshot()  # the loop has gone round since
        assert "Zebrafish" not in rendered(kept)
        assert watch() is None
    gc.collect()


# -- the async default clients --------------------------------------------------------------------


def test_the_second_default_client_of_a_process_is_warned_of_once(
    vendors: BackgroundEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning has the remedy; ended threads and reset clients do not count."""

    def warnings() -> list[str]:
        lines = [each.getMessage() for each in caplog.records]
        return [line for line in lines if "second default client" in line]

    async def use() -> None:
        ri.default_client()
        inner = threading.Thread(target=asyncio.run, args=(once(),), name="worker-7")
        await asyncio.to_thread(run, inner)
        await asyncio.to_thread(run, threading.Thread(target=asyncio.run, args=(both(),)))
        await ri.reset_default_client()

    async def once() -> None:
        ri.default_client()

    async def both() -> None:
        ri.default_client()
        await asyncio.to_thread(ri.default_client)  # a third one

    def run(thread: threading.Thread) -> None:
        thread.start()
        thread.join(PATIENCE)

    with caplog.at_level(logging.WARNING, "resilient_imagen"):
        run(threading.Thread(target=asyncio.run, args=(once(),)))
        asyncio.run(use())
        assert len(warnings()) == 2
        asyncio.run(once())
        asyncio.run(ri.reset_default_client())
    assert len(warnings()) == 2
    assert "thread worker-7 has made a second default client" in warnings()[0]
    assert "resilient_imagen.sync" in warnings()[0]


def test_sinks_and_meters_are_passed_to_the_client(google: FakeProvider) -> None:
    """The client's sinks receive the events of its calls."""
    sink = RecordingSink()
    with sync.ImageClient(ri.Settings(**SETTINGS), providers=[google], sinks=[sink]) as made:
        made.generate("x")
    assert google.closed
    assert [type(event).__name__ for event in sink.events][-1] == "RequestEnded"
    assert client.ImageClient is ri.ImageClient
    assert background_loop.has_background_loop()
