"""litellm's Router making pictures from the emulator; in its own environment.

<its python> benchmarks/peer_images.py small | 4K | references | hang GOOGLE_URL OPENAI_URL FILE
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

from watch import TIMEOUT, per_picture, while_hanging


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

    async def make() -> object:
        if load == "references":
            images = [io.BytesIO(base64.b64decode(one["image_base64"])) for one in given]
            answer = await router.aimage_edit(image=images, prompt="a scene", model="google")
        else:
            answer = await router.aimage_generation(prompt="a lighthouse", model="google")
        assert answer.data[0].b64_json
        return answer.data[0].b64_json

    if load == "hang":
        print(json.dumps(await while_hanging(make)), flush=True)
        os._exit(0)
    print(json.dumps(await per_picture(make, load)))


if __name__ == "__main__":
    _, what, google, openai, path = sys.argv
    asyncio.run(main(what, google, openai, json.loads(Path(path).read_text("utf-8"))))
