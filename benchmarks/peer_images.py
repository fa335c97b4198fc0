"""litellm's Router making pictures from the emulator; in its own environment.

<its python> benchmarks/peer_images.py LOAD GOOGLE_URL OPENAI_URL FILE
"""

import asyncio
import base64
import importlib
import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from resource_probe import LOADS, TIMEOUT, watched


async def main(load: str, google_url: str, openai_url: str, given: list[dict[str, str]]) -> None:
    library: Any = importlib.import_module("litellm")
    library.suppress_debug_info = True
    logging.disable()
    timeout = {"timeout": TIMEOUT} if load == "hang" else {}
    google = {
        "model": "gemini/gemini-3-pro-image",
        "api_key": "k",
        "api_base": f"{google_url}/v1beta",
        **timeout,
    }
    openai = {"model": "openai/gpt-image-1.5", "api_key": "k", "api_base": openai_url, **timeout}
    router = library.Router(
        model_list=[
            {"model_name": "google", "litellm_params": google},
            {"model_name": "openai", "litellm_params": openai},
        ],
        fallbacks=[{"google": ["openai"]}],
    )

    async def make(prompt: str) -> object:
        vendor = LOADS[load].vendor
        if LOADS[load].guided:
            images = [io.BytesIO(base64.b64decode(one["image_base64"])) for one in given]
            answer = await router.aimage_edit(image=images, prompt=prompt, model=vendor)
        else:
            answer = await router.aimage_generation(prompt=prompt, model=vendor)
        text = answer.data[0].b64_json
        assert text
        return text if vendor == "google" else base64.b64decode(text)

    print(json.dumps(await watched(make, load)), flush=True)
    if load == "hang":
        os._exit(0)


if __name__ == "__main__":
    _, what, google, openai, path = sys.argv
    asyncio.run(main(what, google, openai, json.loads(Path(path).read_text("utf-8"))))
