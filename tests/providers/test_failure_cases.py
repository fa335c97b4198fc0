"""Every reported failure of a server, through the real SDKs and a real socket."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from contract_kit import error_text, snapshot
from failure_cases import CASES, failures
from providers_kit import KEY, PROMPT

from resilient_imagen.errors import ImageGenerationError
from resilient_imagen.reasons import Reason


@pytest.fixture(scope="module")
def outcomes() -> dict[str, ImageGenerationError | str]:
    return asyncio.run(failures())


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_reason_and_hint_are_as_reported(
    case: dict[str, Any], outcomes: dict[str, ImageGenerationError | str]
) -> None:
    """Each reported failure has its reason and hint, and its error contains no secret."""
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
    """Error messages have provider, model, code and a known status word only."""
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
    """Class and message of each failure's error equal the contract's snapshot."""
    assert {case: error_text(outcome) for case, outcome in outcomes.items()} == snapshot()[
        "error_texts"
    ]
