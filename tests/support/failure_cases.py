"""The reported failures, sent by a real server to the real SDKs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from paths import DATA
from providers_kit import MODELS, PROMPT, RawServer, http, provider_for, raw_server

from resilient_imagen.errors import ImageGenerationError
from resilient_imagen.providers.sdk import SdkProvider
from resilient_imagen.request import ImageRequest

CASES = [json.loads(line) for line in (DATA / "failure_cases.jsonl").read_text().splitlines()]


async def failures() -> dict[str, ImageGenerationError | str]:
    """Return each case's error, or ``timeout`` when the caller's time limit ended it."""
    async with raw_server(None) as server:
        providers = {vendor: provider_for(vendor, server.url) for vendor in MODELS}
        outcomes = {}
        for case in CASES:
            provider = providers[case["provider"]]
            await provider.warm_up()
            outcomes[case["id"]] = await _outcome(case, server, provider)
        for provider in providers.values():
            await provider.aclose()
        return outcomes


async def _outcome(
    case: dict[str, Any], server: RawServer, provider: SdkProvider
) -> ImageGenerationError | str:
    status = case["http_status"]
    reply = None if status is None else http(status, case["body"], case["headers"])
    server.answer = lambda _request: reply
    server.reset = case["transport"] == "reset_before_response"
    hangs = reply is None and not server.reset
    try:
        async with asyncio.timeout(0.3 if hangs else 30):
            await provider.generate(ImageRequest(PROMPT), MODELS[case["provider"]])
    except ImageGenerationError as error:
        return error
    except TimeoutError:
        return "timeout"
    raise AssertionError("the failure was parsed as an image")
