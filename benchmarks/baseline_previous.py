"""The design that this library replaces, written anew from its description, over the real SDKs.

A sync SDK in a thread with ``wait_for`` around it; three tries of Google, 5 and 10 s apart, where
the error's text looks transient, then OpenAI; one slot from beginning to end; references opened as
pixels, which the SDK encodes again; the picture turned into base64 on the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

TRANSIENT = ("503", "429", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "timed out")


class GuideClient:
    """Retries, then a fallback, around two functions that block."""

    def __init__(
        self, *, slots: int = 4, ipm: float = 10.0, timeout: float = 60.0, pause: float = 5.0
    ) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._turn = asyncio.Lock()
        self._gap = 60.0 / ipm
        self._last = 0.0
        self._timeout = timeout
        self._pause = pause

    async def image(self, google: Callable[[], T], openai: Callable[[], T]) -> T:
        """Google's answer or, after three tries, OpenAI's."""
        async with self._slots:
            await self._pace()
            try:
                return await self._tried(google)
            except Exception as error:
                if not any(word in str(error) for word in TRANSIENT):
                    raise
                return await asyncio.to_thread(openai)

    async def _pace(self) -> None:
        async with self._turn:
            now = asyncio.get_running_loop().time
            if (wait := self._last + self._gap - now()) > 0:
                await asyncio.sleep(wait)
            self._last = now()

    async def _tried(self, google: Callable[[], T]) -> T:
        for number in range(3):
            try:
                return await asyncio.wait_for(asyncio.to_thread(google), self._timeout)
            except TimeoutError:
                continue
            except Exception as error:
                if number == 2 or not any(word in str(error) for word in TRANSIENT[:-1]):
                    raise
                pause = self._pause * 2**number
                await asyncio.sleep(pause * random.uniform(0.7, 1.3))
        raise TimeoutError("Google timed out three times")


class GuideOverSdks:
    """The same with the vendors' sync clients."""

    def __init__(self, google_url: str, openai_url: str, guide: GuideClient) -> None:
        from google import genai
        from google.genai import types
        from openai import OpenAI

        options = types.HttpOptions(base_url=google_url)
        self._google = genai.Client(api_key="k", vertexai=False, http_options=options)
        self._openai = OpenAI(api_key="k", base_url=openai_url)
        self._guide = guide

    async def generate(self, prompt: str, references: Sequence[dict[str, str]] = ()) -> str:
        """A picture in base64."""
        from PIL import Image

        opened = [
            Image.open(io.BytesIO(base64.b64decode(one["image_base64"]))) for one in references
        ]
        try:
            return await self._guide.image(
                lambda: self._ask_google(prompt, opened), lambda: self._ask_openai(prompt)
            )
        finally:
            if opened:
                for picture in opened:
                    picture.close()
                gc.collect()

    async def by_openai(self, prompt: str) -> str:
        """A picture in base64, from OpenAI at once."""
        return await self._guide.image(*[lambda: self._ask_openai(prompt)] * 2)

    def _ask_google(self, prompt: str, opened: list[Any]) -> str:
        from google.genai import types

        answer = self._google.models.generate_content(
            model="gemini-3-pro-image",
            contents=[prompt, *opened],
            config=types.GenerateContentConfig(
                response_modalities=["TEXT", "IMAGE"],
                image_config=types.ImageConfig(aspect_ratio="9:16", image_size="2K"),
            ),
        )
        for part in answer.parts or []:
            if part.inline_data is not None and part.inline_data.data:
                return base64.b64encode(part.inline_data.data).decode()
        raise ValueError("no image")

    def _ask_openai(self, prompt: str) -> str:
        answer = self._openai.images.generate(
            model="gpt-image-2.5-flare", prompt=prompt, size="1024x1536", quality="high"
        )
        assert answer.data
        return answer.data[0].b64_json or ""
