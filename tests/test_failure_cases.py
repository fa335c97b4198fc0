"""Every reported failure that a server can send, through the real SDKs and a real socket."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from contract_kit import error_text, snapshot
from providers_kit import KEY, MODELS, PROMPT, http, provider_for, raw_server

from resilient_imagen.errors import ImageGenerationError
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ImageRequest

if TYPE_CHECKING:
    from providers_kit import RawServer

    from resilient_imagen.providers.sdk import SdkProvider

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "failure_cases.jsonl").read_text().splitlines()
]


async def failures() -> dict[str, ImageGenerationError | str]:
    """By case: the provider's error, or ``timeout`` when the caller's time limit ended it."""
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
    raise AssertionError("the failure was taken for a picture")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, ImageGenerationError | str]:
    return asyncio.run(failures())


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_reason_and_hint_are_as_reported(
    case: dict[str, Any], outcomes: dict[str, ImageGenerationError | str]
) -> None:
    """A failure seen in the wild gets its reason and its hint, and its error leaks nothing."""
    outcome = outcomes[case["id"]]
    if isinstance(outcome, str):
        assert outcome == case["reason"]
        return
    assert outcome.reason == case["reason"]
    hint = case["retry_after_s"]
    assert outcome.retry_after == (None if hint is None else pytest.approx(hint))
    shown = f"{outcome} {outcome.vendor_message}"
    assert KEY not in shown
    assert "MASKED-KEY" not in shown
    assert PROMPT not in shown
    assert outcome.__cause__ is None
    assert outcome.__context__ is None


def test_no_text_holds_a_reason_word_or_vendor_prose(
    outcomes: dict[str, ImageGenerationError | str],
) -> None:
    """Error texts keep to provider, model, code and a status word from a fixed vocabulary."""
    shape = re.compile(
        r"(google gemini-3-pro-image|openai gpt-image-2\.5-flare): "
        r"(\d{3} )?(\w+|[a-z ]+)"
    )
    for outcome in outcomes.values():
        text = str(outcome)
        if isinstance(outcome, ImageGenerationError):
            assert shape.fullmatch(text), text
            assert not any(reason in text for reason in Reason), text


def test_error_texts_are_those_that_applications_search(
    outcomes: dict[str, ImageGenerationError | str],
) -> None:
    """The class and the text of each failure's error are as the contract's snapshot has them."""
    assert {case: error_text(outcome) for case, outcome in outcomes.items()} == snapshot()[
        "error_texts"
    ]
