"""Emulator test kit: both real SDKs with an emulator, over sockets or in memory."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2
import openai
from google import genai
from google.genai import types
from images_samples import encoded
from PIL import Image

from resilient_imagen.emulator import Emulator, EmulatorServer
from resilient_imagen.testing import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_T = TypeVar("_T")

GEMINI = "gemini-3-pro-image"
GPT = "gpt-image-2.5-flare"
PATIENCE = 60.0
"""Seconds after which a test counts as hanging; far more than any test needs."""


@dataclass
class Wired:
    """An emulator and two SDK clients that send to it."""

    app: Emulator
    google: genai.Client
    openai: openai.AsyncOpenAI
    server: EmulatorServer | None
    http: tuple[httpx2.AsyncClient, httpx2.AsyncClient]

    async def gemini(
        self,
        prompt: str = "a lighthouse",
        *,
        references: tuple[tuple[bytes, str], ...] = (),
        model: str = GEMINI,
        timeout_ms: int | None = None,
        **config: Any,
    ) -> types.GenerateContentResponse:
        """Call generate_content as the library does."""
        parts: list[Any] = [
            types.Part.from_bytes(data=data, mime_type=mime) for data, mime in references
        ]
        config.setdefault("aspect_ratio", "9:16")
        return await self.google.aio.models.generate_content(
            model=model,
            contents=[*parts, prompt],
            config=types.GenerateContentConfig(
                response_modalities=["IMAGE"],
                image_config=types.ImageConfig(**config),
                http_options=types.HttpOptions(timeout=timeout_ms),
                automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
                automatic_continuation=False,
            ),
        )

    async def gpt(self, prompt: str = "a lighthouse", **options: Any) -> Any:
        """Call images.generate."""
        options = {"model": GPT, "size": "1024x1536", "quality": "high", **options}
        return await self.openai.images.generate(prompt=prompt, **options)

    async def gpt_edit(self, images: Any, prompt: str = "bluer", **options: Any) -> Any:
        """Call images.edit."""
        options = {"model": GPT, "size": "1024x1536", "quality": "high", **options}
        return await self.openai.images.edit(image=images, prompt=prompt, **options)


@contextlib.asynccontextmanager
async def wired(app: Emulator, way: str) -> AsyncIterator[Wired]:
    """Provide SDK clients for ``app``; ``way`` is socket or memory."""
    async with contextlib.AsyncExitStack() as stack:
        server = None
        google_url, openai_url = "http://emulator", "http://emulator/v1"
        transports: list[httpx2.AsyncBaseTransport | None] = [None, None]
        if way == "socket":
            server = await stack.enter_async_context(EmulatorServer(app))
            google_url, openai_url = server.google_url, server.openai_url
        else:
            transports = [app.transport(), app.transport()]
        http = [
            await stack.enter_async_context(httpx2.AsyncClient(transport=transport, verify=False))
            for transport in transports
        ]
        google = genai.Client(
            api_key="k",
            vertexai=False,
            http_options=types.HttpOptions(base_url=google_url, httpx_async_client=http[0]),
        )
        gpt = openai.AsyncOpenAI(
            api_key="k", base_url=openai_url, max_retries=0, http_client=http[1]
        )
        yield Wired(app, google, gpt, server, (http[0], http[1]))


def run_with_emulator(
    scenario: Callable[[Wired], Awaitable[None]], app: Emulator | None = None, way: str = "socket"
) -> None:
    """Run a scenario on an ordinary loop, against a fast emulator unless one is given."""

    async def main() -> None:
        async with (
            asyncio.timeout(PATIENCE),
            wired(app or Emulator(picture="tiny"), way) as both,
        ):
            await scenario(both)

    asyncio.run(main())


def picture(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> bytes:
    """Return a small encoded image."""
    image = Image.new(mode, size)
    # A phone's multi-picture JPEG holds at least two.
    more: dict[str, Any] = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    return encoded(image, kind, **more)


class _Loop(VirtualTimeLoop):
    """A virtual-time loop that also waits for the executor's last thread when it is closed."""

    async def shutdown_default_executor(self, *args: Any) -> None:
        self.threads_pending += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self.threads_pending -= 1


def run_with_emulator_virtually(scenario: Callable[[Wired], Awaitable[_T]], app: Emulator) -> _T:
    """Run a scenario in memory on virtual time."""

    async def main() -> _T:
        async with wired(app, "memory") as both:
            return await scenario(both)

    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main())
