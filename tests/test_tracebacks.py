"""A raised error keeps the lines of its traceback and none of the call's data."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import struct
import sys
import weakref
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context, copy_context
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
import pytest
import structlog
from memory_kit import PROMPT, WatchedPrompt, without_cycle_collector
from pipeline_kit import CancelAtStep
from providers_kit import MODELS, google_body, openai_body

import resilient_imagen as ri
from resilient_imagen.emulator import BackgroundEmulator, faults
from resilient_imagen.providers.base import ProviderResult
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.http import CapturedExchange
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.providers.sdk import SdkProvider
from resilient_imagen.request import ImageRequest, Reference
from resilient_imagen.testing import FakeProvider, run_virtual
from resilient_imagen.tracebacks import clear_frame_locals, hide_frame_locals

KEY = "AIzaSyPlanted0Qw3rTy4567890zxcvbnm"
MESSAGE = "unpublished remark of the vendor"
OURS = str(Path(ri.__file__).parent)
HARMLESS = {"function", "running", "handled"}
"""Local variables of the boundary's own frame."""


@cache
def stored_png(side: int = 40) -> bytes:
    """Return a PNG of slightly more than ``3 * side * side`` bytes with uncompressed pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = (b"\0" + bytes(range(1, 4)) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


PICTURE64 = base64.b64encode(stored_png()).decode()
NEEDLES = (PROMPT, "Zebrafish", KEY, MESSAGE, PICTURE64[200:260], r"\x01\x02\x03\x01\x02\x03")


# -- what is shown --------------------------------------------------------------------------------


def kept_by(error: BaseException) -> Iterator[FrameType]:
    """Return every frame that is reachable from an error, by suppressed contexts too."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        waiting += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
        if isinstance(each, ri.AllProvidersFailedError):
            waiting += each.errors
        trace = each.__traceback__
        while trace is not None:
            yield trace.tb_frame
            trace = trace.tb_next


def assert_clean(error: BaseException, *, outermost: str | None = None) -> None:
    """Check that no frame but the caller's has data of the call, in any tool."""
    frames = [frame for frame in kept_by(error) if frame.f_code.co_filename != __file__]
    for frame in frames:
        code = frame.f_code
        assert set(frame.f_locals) <= HARMLESS, (code.co_filename, code.co_name)
    if outermost is not None:
        names = [f.f_code.co_name for f in frames if f.f_code.co_filename.startswith(OURS)]
        assert outermost in names, names
    transform = structlog.tracebacks.ExceptionDictTransformer(
        show_locals=True, locals_max_length=10**6, locals_max_string=10**6, max_frames=500
    )
    shown = json.dumps(transform((type(error), error, error.__traceback__)))
    assert "tracebacks.py" in shown
    for needle in NEEDLES:
        at = shown.find(needle)
        assert at < 0, shown[max(0, at - 300) : at + 100]


async def failure_of(work: Awaitable[object]) -> BaseException:
    """Return the exception that the awaitable raises."""
    try:
        await work
    except BaseException as error:  # noqa: BLE001 - cancellation is one of them
        return error
    pytest.fail("it did not fail")


# -- every kind of failure, at the client ---------------------------------------------------------


class Vendors:
    """In-memory vendors that respond as each test wants."""

    def __init__(self, answer: Callable[[httpx2.Request], httpx2.Response | None]) -> None:
        self.answer = answer

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        response = self.answer(request)
        if response is None:
            await asyncio.Event().wait()
        assert response is not None
        return response


def refusal(status: int, word: str = "UNAVAILABLE") -> Callable[[httpx2.Request], httpx2.Response]:
    message = f"{MESSAGE}: {PROMPT} {KEY}"
    body = {"error": {"code": status, "status": word, "message": message}}
    return lambda _request: httpx2.Response(status, json=body)


def hang(_request: httpx2.Request) -> None:
    """Send no response."""


def damaged(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ReadError(f"{MESSAGE} {PROMPT}", request=request)


def local_bug(request: httpx2.Request) -> httpx2.Response:
    raise LookupError("of ours")


def unexpected_json(_request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, text=f'{{"candidates": 3, "say": "{MESSAGE} {PROMPT}"}}')


FAILURES: dict[str, Callable[[httpx2.Request], httpx2.Response | None]] = {
    "overloaded": refusal(503),
    "throttled": refusal(429, "RESOURCE_EXHAUSTED"),
    "invalid": refusal(400, "INVALID_ARGUMENT"),
    "key": refusal(401, "UNAUTHENTICATED"),
    "unreadable": unexpected_json,
    "connection": damaged,
    "bug": local_bug,
    "hangs": hang,
}
REFERENCE = {"image_base64": PICTURE64, "mime_type": "image/png"}


def provider_of(vendor: str, answer: Callable[[httpx2.Request], Any]) -> SdkProvider:
    transport = httpx2.MockTransport(Vendors(answer))
    kind = GoogleProvider if vendor == "google" else OpenAIProvider
    return kind(api_key=KEY, transport=transport)


def client_of(
    answer: Callable[[httpx2.Request], Any], *vendors: str, **options: Any
) -> ri.ImageClient:
    routes = ",".join(f"{vendor}:{MODELS[vendor]}" for vendor in vendors)
    settings = ri.Settings(routes=routes, ipm=600_000, max_retries=1, **options)
    return ri.ImageClient(settings, providers=[provider_of(name, answer) for name in vendors])


@pytest.mark.parametrize("vendors", [("google",), ("openai",), ("google", "openai")])
@pytest.mark.parametrize("entry", ["generate", "references", "edit"])
@pytest.mark.parametrize("kind", FAILURES)
def test_no_frame_of_a_failed_call_keeps_its_data(
    kind: str, entry: str, vendors: tuple[str, ...]
) -> None:
    """Each failure of each client method has lines, but no variables."""

    async def main() -> None:
        async with client_of(FAILURES[kind], *vendors) as client:
            if entry == "edit":
                error = await failure_of(client.edit(REFERENCE, PROMPT))
            elif entry == "references":
                error = await failure_of(client.generate(PROMPT, references=[REFERENCE]))
            else:
                error = await failure_of(client.generate(PROMPT))
            assert_clean(error, outermost="call_async")

    run_virtual(main())


@pytest.mark.parametrize("references", [[], [REFERENCE]], ids=["plain", "references"])
@pytest.mark.parametrize("vendors", [("google",), ("openai",), ("google", "openai")])
def test_a_passed_deadline_and_a_cancelled_call_keep_nothing(
    vendors: tuple[str, ...], references: list[Any]
) -> None:
    """The deadline or the caller ends the call during a request."""

    async def main() -> None:
        async with client_of(hang, *vendors) as client:
            late = await failure_of(client.generate(PROMPT, references=references, deadline=5))
            assert isinstance(late, ri.DeadlineExceededError)
            assert_clean(late)
            for moment in (0.0, 1.0):
                task = asyncio.ensure_future(client.generate(PROMPT, references=references))
                await asyncio.sleep(moment)
                task.cancel()
                left = await failure_of(task)
                assert isinstance(left, asyncio.CancelledError)
                if moment:
                    assert_clean(left)

    run_virtual(main())


def test_rejected_arguments_are_in_no_frame() -> None:
    """Invalid values, names and images are in no frame."""

    async def main() -> None:
        async with client_of(hang, "google", strict_references=True) as client:
            for work in (
                client.generate(PROMPT, aspect_ratio=PROMPT),  # type: ignore[arg-type]
                client.generate(PROMPT, resolution=PICTURE64),  # type: ignore[arg-type]
                client.generate(PROMPT, model=PROMPT),
                client.generate(PROMPT, deadline=-1),
                client.generate(PROMPT, references=[PROMPT]),
                client.generate(PROMPT, references=PICTURE64),
                client.generate(PROMPT, references=[{"image_base64": PICTURE64[:400]}]),
                client.edit(PICTURE64[:400], PROMPT),
                client.generate(PROMPT, colour=PROMPT),  # type: ignore[call-arg]
            ):
                assert_clean(await failure_of(work))
        assert_clean(await failure_of(client.generate(PROMPT)))  # it is closed

    run_virtual(main())


class Broken:
    """An application's provider with a bug and with the request's data."""

    name = "google"

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        prompt, key = request.prompt, KEY
        return self._draw(prompt, key)

    def _draw(self, prompt: str, key: str) -> ProviderResult:
        raise KeyError(model_of(len(prompt + key)))

    async def aclose(self) -> None:
        """Do nothing."""


def model_of(number: int) -> int:
    return number


def test_the_traceback_of_a_bug_keeps_its_lines() -> None:
    """Function names and lines of all frames stay for debugging."""

    async def main() -> None:
        settings = ri.Settings(routes="google:gemini-3-pro-image")
        async with ri.ImageClient(settings, providers=[Broken()]) as client:
            error = await failure_of(client.generate(PROMPT))
        assert isinstance(error, KeyError)
        frames = list(kept_by(error))
        assert {"_serve", "_on_route", "generate", "_draw"} <= {f.f_code.co_name for f in frames}
        assert all(not frame.f_locals for frame in frames if frame.f_code.co_name == "_draw")
        assert_clean(error)

    run_virtual(main())


@pytest.mark.parametrize("vendor", ["google", "openai"])
@pytest.mark.parametrize("kind", [kind for kind in FAILURES if kind != "hangs"])
def test_a_provider_that_is_called_directly_keeps_no_data(kind: str, vendor: str) -> None:
    """Built-in providers that are called directly keep no data either."""

    async def main() -> None:
        provider = provider_of(vendor, FAILURES[kind])
        request = ImageRequest(PROMPT, references=(Reference(stored_png(), "image/png", 0),))
        error = await failure_of(provider.generate(request, MODELS[vendor]))
        del request
        assert_clean(error)
        await provider.aclose()

    run_virtual(main())


WRONG: dict[str, Callable[[], object]] = {
    "google key": lambda: GoogleProvider(api_key=f"{KEY} x"),
    "google url": lambda: GoogleProvider(api_key=KEY, base_url="nowhere"),
    "openai key": lambda: OpenAIProvider(api_key=f"{KEY} x"),
    "openai url": lambda: OpenAIProvider(api_key=KEY, base_url="nowhere"),
    "settings": lambda: ri.Settings(google_api_key=KEY, redis_url=f"redis://:{KEY}@h", ipm=-1),
    "key in settings": lambda: ri.Settings(google_api_key=[KEY]),  # type: ignore[arg-type]
    "client": lambda: ri.ImageClient(ri.Settings(google_api_key=KEY, routes="google:gpt-image-2")),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_key_that_is_refused_is_in_no_frame(kind: str) -> None:
    """Constructors keep a rejected key in no frame."""
    with pytest.raises(ri.ConfigurationError) as caught:
        WRONG[kind]()
    assert_clean(caught.value)


def test_each_caller_gets_a_new_error_for_a_missing_sdk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Callers that wait for the same import share no exception, and so no list of attempts."""
    monkeypatch.setitem(sys.modules, "google.genai.client", None)

    async def main() -> None:
        async with client_of(hang, "google") as client:
            errors = await asyncio.gather(
                *(failure_of(client.generate(PROMPT)) for _ in range(3)),
                failure_of(client.warm_up()),
            )
        assert len({id(error) for error in errors}) == 4
        for error in errors:
            assert isinstance(error, ri.ConfigurationError)
            assert_clean(error)

    run_virtual(main())


def test_the_callers_exception_is_unchanged() -> None:
    """The caller's exception becomes the context, and its frames are unchanged."""

    def step(detail: str) -> None:
        raise ValueError(len(detail))

    async def caller(client: ri.ImageClient) -> None:
        try:
            step("kept")
        except ValueError:
            await client.generate(PROMPT)

    async def main() -> None:
        async with client_of(refusal(503), "google") as client:
            error = await failure_of(caller(client))
        variables = [frame.f_locals for frame in kept_by(error) if frame.f_code.co_name == "step"]
        assert variables == [{"detail": "kept"}]

    run_virtual(main())


def test_a_suspended_coroutine_in_a_traceback_continues() -> None:
    """Clearing the frames of a shared exception does not end a suspended coroutine."""
    shared = ValueError("shared")

    async def other(go_on: asyncio.Event) -> str:
        result = "unharmed"
        try:
            raise shared
        except ValueError:
            await go_on.wait()
        return result

    async def main() -> None:
        go_on = asyncio.Event()
        task = asyncio.create_task(other(go_on))
        await asyncio.sleep(0)
        clear_frame_locals(shared)
        go_on.set()
        assert await task == "unharmed"

    asyncio.run(main())


def test_decorated_functions_keep_their_signature() -> None:
    """Decorated functions keep signature and coroutine flag, which frameworks inspect."""
    for function in (ri.generate_image, ri.ImageClient.generate, GoogleProvider.generate):
        assert asyncio.iscoroutinefunction(function)
        assert function.__doc__

    @hide_frame_locals
    def plain(number: int) -> int:
        return number + 1

    assert plain(1) == 2


# -- the drop-in functions, over sockets ----------------------------------------------------------


@pytest.fixture
def vendors(vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch) -> BackgroundEmulator:
    """Both vendors, with the key that tests look for."""
    monkeypatch.setenv("GOOGLE_GENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return vendors


ENTRIES: dict[str, Callable[..., Awaitable[Any]]] = {
    "generate": lambda **more: ri.generate_image(PROMPT, **more),
    "references": lambda **more: ri.generate_image_with_references(PROMPT, [REFERENCE], **more),
    "edit": lambda **more: ri.edit_image(REFERENCE, PROMPT, **more),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_drop_in_functions_keep_no_data_of_a_call(
    vendors: BackgroundEmulator, entry: str
) -> None:
    """Refusal, failure, deadline, cancellation and invalid argument keep no data."""
    ask = ENTRIES[entry]

    async def main() -> None:
        try:
            vendors.google.set(faults.blocked())
            assert_clean(await failure_of(ask()))
            vendors.google.set(faults.status(503))
            vendors.openai.set(faults.status(500))
            assert_clean(await failure_of(ask()))
            assert_clean(await failure_of(ask(aspect_ratio=PROMPT)))
            assert_clean(await failure_of(ask(colour=PROMPT)))
            await ri.reset_default_client()
            vendors.google.set(faults.hang())
            vendors.openai.set(faults.hang())
            task = asyncio.ensure_future(ask())
            await asyncio.to_thread(vendors.wait_until, lambda: vendors.google.in_flight == 1)
            task.cancel()
            assert_clean(await failure_of(task))
            assert_clean(await failure_of(ask(deadline=0.2)))
        finally:
            await ri.reset_default_client()

    asyncio.run(main())


# -- what is kept in memory -----------------------------------------------------------------------


def alive() -> int:
    """Return the bytes of this test's reference images that are still referenced."""
    kinds = {Reference, CapturedExchange}
    kept = [each for each in gc.get_objects() if type(each) in kinds]
    sending = [each for each in kept if type(each) is CapturedExchange and each.rewrite]
    return sum(len(each.data) for each in kept if type(each) is Reference) + len(sending)


def test_a_stored_error_keeps_no_data() -> None:
    """Neither frames nor functions of a stored error keep the call's data."""

    async def main() -> None:
        async with client_of(hang, "google") as client:
            with without_cycle_collector():
                prompt = WatchedPrompt(PROMPT)
                watch = weakref.ref(prompt)
                errors = [
                    await failure_of(client.generate(prompt, references=[{}, b"x"], deadline=5)),
                    await failure_of(client.edit(b"not an image", prompt)),
                ]
                del prompt
                assert watch() is None
                assert len(errors) == 2

    run_virtual(main())


async def let_go(client: ri.ImageClient, **options: Any) -> weakref.ref[WatchedPrompt]:
    """Run one call with a large reference, and ignore its outcome."""
    prompt = WatchedPrompt(PROMPT)
    watch = weakref.ref(prompt)
    work = asyncio.ensure_future(client.generate(prompt, references=[stored_png(2600)], **options))
    del prompt
    await asyncio.wait({work}, timeout=20)
    if not work.done():
        work.cancel()
        await asyncio.wait({work})
    if not work.cancelled():
        work.exception()
    return watch


def once(
    first: Callable[[httpx2.Request], httpx2.Response | None],
) -> Callable[[httpx2.Request], httpx2.Response | None]:
    """Fail the first request, and serve the others."""
    answers = iter([first])

    def answer(request: httpx2.Request) -> httpx2.Response | None:
        good = google_body() if "google" in str(request.url.host) else openai_body()
        return next(answers, lambda _request: httpx2.Response(200, json=good))(request)

    return answer


MEMORY: dict[str, tuple[Callable[[httpx2.Request], Any], dict[str, Any]]] = {
    "cancelled": (hang, {}),
    "deadline": (hang, {"deadline": 10}),
    **{kind: (answer, {}) for kind, answer in FAILURES.items() if kind != "hangs"},
    "served by a retry": (once(refusal(503)), {}),
    "served by the fallback": (once(refusal(401)), {}),
}


@pytest.mark.no_cover
@pytest.mark.parametrize("vendors", [("google", "openai"), ("openai", "google")])
@pytest.mark.parametrize("kind", MEMORY)
def test_a_finished_call_keeps_no_memory(kind: str, vendors: tuple[str, ...]) -> None:
    """Reference counting frees the prompt and references of 20 MB."""
    answer, options = MEMORY[kind]

    async def main() -> None:
        async with client_of(answer, *vendors) as client:
            await client.warm_up()
            with without_cycle_collector():
                watches = [await let_go(client, **options) for _ in range(2)]
                await asyncio.sleep(1)
                assert alive() == 0
                assert [watch() for watch in watches] == [None, None]

    run_virtual(main())


def test_a_call_cancelled_at_any_await_keeps_no_memory() -> None:
    """Each call is cancelled one suspension later than the previous one."""

    async def main() -> None:
        async def warm_up() -> None:
            await asyncio.sleep(0.1)

        async def on_start() -> None:
            await asyncio.sleep(0.01)

        google, openai = FakeProvider("google"), FakeProvider("openai")
        google.warm_up = warm_up  # type: ignore[attr-defined]
        settings = ri.Settings(ipm=6000, deadline=100)
        async with ri.ImageClient(settings, providers=[google, openai]) as client:
            with without_cycle_collector():
                for step in range(1, 100):
                    google.heal().fail(ri.Reason.OVERLOADED, status=503, times=1)
                    prompt = WatchedPrompt(PROMPT)
                    watch = weakref.ref(prompt)
                    call = client.generate(prompt, references=[REFERENCE], on_start=on_start)
                    canceller = CancelAtStep(step)
                    await canceller.run(call)
                    steps = canceller.steps
                    del prompt, call
                    google.sent.clear()
                    openai.sent.clear()
                    assert watch() is None, step
                    await asyncio.sleep(1300)
                    if steps < step:
                        break
                assert 4 < steps < step

    run_virtual(main())


@pytest.mark.no_cover
@pytest.mark.parametrize("vendor", ["google", "openai"])
@pytest.mark.parametrize("kind", [*FAILURES, "served"])
def test_a_stored_context_keeps_no_memory(kind: str, vendor: str) -> None:
    """Timers and connections keep the context of their creation for minutes."""
    contexts: list[Context] = []
    good = google_body() if vendor == "google" else openai_body()

    def served(_request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=good)

    answer = FAILURES.get(kind, served)

    def keeping(request: httpx2.Request) -> httpx2.Response | None:
        contexts.append(copy_context())
        return answer(request)

    async def main() -> None:
        async with client_of(keeping, vendor) as client:
            await client.warm_up()
            with without_cycle_collector():
                watch = await let_go(client, deadline=30)
                await asyncio.sleep(1)
                kept = [each for each in gc.get_objects() if type(each) is CapturedExchange]
                assert contexts
                assert kept
                assert all(each.response is None and not each.body.text for each in kept)
                assert alive() == 0
                assert watch() is None

    run_virtual(main())


def test_an_idle_connection_keeps_no_references(vendors: BackgroundEmulator) -> None:
    """The transport keeps the context in which it connected."""

    async def main() -> None:
        async with ri.ImageClient() as client:
            await client.warm_up()
            with without_cycle_collector():
                await client.generate(PROMPT, references=[stored_png(600)])
                vendors.google.set(faults.status(503))
                await client.generate(PROMPT, references=[stored_png(600)])
                await asyncio.sleep(0)
                assert alive() == 0

    asyncio.run(main())
