"""``call_options`` sets options for call sites that cannot be changed."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import Context, copy_context
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI

import resilient_imagen as ri
from resilient_imagen import ImageOptions, api, call_options
from resilient_imagen.emulator import BackgroundEmulator, Emulator
from resilient_imagen.testing import FakeProvider, run_virtual


class Asked:
    """A default client that records its requests."""

    def __init__(self) -> None:
        self.deadlines: list[float | None] = []
        self.options: list[dict[str, Any]] = []
        """The options of the request itself."""

    async def generate(self, prompt: str, *_: object, **options: Any) -> ri.ImageResult:
        self.deadlines.append(options["deadline"])
        self.options.append(
            {key: options[key] for key in options if key in ImageOptions.__annotations__}
        )
        raise ri.InvalidRequestError("nothing is made here")

    edit = generate

    async def retire(self) -> None:
        """Do nothing."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    client = Asked()
    everywhere = threading.local()
    monkeypatch.setattr(api, "_mine", everywhere)
    monkeypatch.setattr(api, "default_client", lambda: client)
    everywhere.client = client
    return client


async def ask(**options: Any) -> None:
    with pytest.raises(ri.InvalidRequestError):
        await ri.generate_image("x", **options)


def test_a_block_may_end_in_another_context(asked: Asked) -> None:
    """Async fixtures and generators end a block elsewhere; its options apply until then."""

    async def fixture() -> AsyncIterator[None]:
        with call_options(deadline=7):
            yield

    async def main() -> None:
        loop = asyncio.get_running_loop()
        generator = fixture()
        await loop.create_task(anext(generator), context=Context())  # type: ignore[arg-type]
        await ask()
        with pytest.raises(StopAsyncIteration):
            await loop.create_task(anext(generator), context=Context())  # type: ignore[arg-type]
        await ask()

    asyncio.run(main())
    assert asked.deadlines == [None, None]


def test_a_block_that_ends_in_a_copy_of_its_context_ends_there(asked: Asked) -> None:
    """The copied context has the options, and afterwards the outer ones."""

    def block() -> Iterator[None]:
        with call_options(deadline=7):
            yield

    async def main() -> None:
        with call_options(deadline=99):
            generator = block()
            next(generator)
            copied = copy_context()
            await ask()
            with pytest.raises(StopIteration):
                copied.run(next, generator)
            await asyncio.get_running_loop().create_task(ask(), context=copied)

    asyncio.run(main())
    assert asked.deadlines == [7, 99]


def test_an_abandoned_generator_ends_its_block_without_an_error(asked: Asked) -> None:
    """The garbage collector may end a block in any context."""

    async def forever() -> AsyncIterator[int]:
        with call_options(deadline=7):
            for number in range(10):
                yield number

    async def main() -> None:
        async for _ in forever():
            break
        await asyncio.get_running_loop().shutdown_asyncgens()
        await asyncio.get_running_loop().create_task(ask(), context=Context())

    asyncio.run(main())
    assert asked.deadlines == [None]


def test_arguments_override_blocks_and_inner_blocks_override_outer_ones(asked: Asked) -> None:
    """Each option takes precedence separately; None does not set an option."""

    async def main() -> None:
        with call_options(seed=1, quality="low", output_format="png"):
            await ask()
            with call_options(quality="high", output_format=None):
                await ask(seed=3, quality=None)
            with pytest.raises(ri.InvalidRequestError):
                await ri.edit_image(b"png", "x", output_format="webp")
        await ask(background="opaque")

    asyncio.run(main())
    assert asked.options == [
        {"seed": 1, "quality": "low", "output_format": "png"},
        {"seed": 3, "quality": "high", "output_format": "png"},
        {"seed": 1, "quality": "low", "output_format": "webp"},
        {"background": "opaque"},
    ]


def test_an_unknown_option_is_a_wrong_argument(asked: Asked) -> None:
    """An unknown option raises an error where the block begins."""
    options: dict[str, Any] = {"colour": "red"}
    with (
        pytest.raises(TypeError, match="'colour'; options are n, background"),
        call_options(**options),
    ):
        pass
    assert asked.options == []


def test_an_outer_deadline_can_be_lifted(asked: Asked) -> None:
    """``math.inf`` means no limit; None means that no deadline is given."""

    async def main() -> None:
        with call_options(deadline=5):
            await ask()
            await ask(deadline=math.inf)
            with call_options(deadline=None):
                await ask()
            with call_options(deadline=math.inf):
                await ask()
                await ask(deadline=3)
            await ask()
        await ask()

    asyncio.run(main())
    assert asked.deadlines == [5, math.inf, 5, math.inf, 3, 5, None]


def test_a_lifted_deadline_does_not_limit_the_call() -> None:
    """Without a limit, a call waits for its providers, whatever IMAGE_GEN_DEADLINE is."""

    async def main() -> None:
        google = FakeProvider("google", latency=50)
        settings = ri.Settings(deadline=10, routes="google:gemini-3-pro-image")
        async with ri.ImageClient(settings, providers=[google]) as client:
            with pytest.raises(ri.DeadlineExceededError):
                await client.generate("x")
            for _ in range(2):
                assert (await client.generate("x", deadline=math.inf)).provider == "google"
            with pytest.raises(ri.InvalidRequestError, match="deadline must be"):
                await client.generate("x", deadline=-math.inf)

    run_virtual(main())


def test_an_outer_deadline_is_lifted_for_the_drop_in_functions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first call of the default client over sockets has no deadline."""
    with BackgroundEmulator(Emulator(picture="tiny")) as vendors:
        monkeypatch.setenv("GOOGLE_GENAI_API_KEY", "AIzaSyFAKEFAKEFAKEFAKEFAKEFAKEFAKEFAKE")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", vendors.google_url)
        monkeypatch.setenv("IMAGE_GEN_DEADLINE", "0.001")
        monkeypatch.setenv("IMAGE_GEN_IPM", "60000")

        async def main() -> None:
            try:
                with call_options(deadline=0.001):
                    with pytest.raises(ri.ImageGenerationError):
                        await ri.generate_image("x")
                    with call_options(deadline=math.inf):
                        assert (await ri.generate_image("x"))["provider"] == "google"
                    with pytest.raises(ri.ImageGenerationError):
                        await ri.generate_image("x")
                with pytest.raises(ri.ImageGenerationError):
                    await ri.generate_image("x")
                assert (await ri.generate_image("x", deadline=math.inf))["provider"] == "google"
            finally:
                await ri.reset_default_client()

        asyncio.run(main())


def in_a_thread() -> Iterator[None]:
    with call_options(deadline=7):
        yield


async def on_the_loop() -> AsyncIterator[None]:
    with call_options(deadline=7):
        yield


def test_a_fastapi_dependency_must_be_async(asked: Asked) -> None:
    """A synchronous dependency runs in a thread, whose options no endpoint sees."""

    app = FastAPI()

    @app.get("/thread")
    async def thread(_: Annotated[None, Depends(in_a_thread)]) -> None:
        await ask()

    @app.get("/loop")
    async def loop(_: Annotated[None, Depends(on_the_loop)]) -> None:
        await ask()

    async def main() -> None:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/thread")).status_code == 200
            assert (await client.get("/loop")).status_code == 200

    asyncio.run(main())
    assert asked.deadlines == [None, 7]
