"""Streaming JSON body: base64 images are decoded while the response arrives."""

from __future__ import annotations

import base64
import json
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from providers_kit import PNG, PNG64, body_of, google_body, openai_body

from resilient_imagen.providers import google_response, openai_response
from resilient_imagen.providers.base import ProviderResult
from resilient_imagen.providers.response_parsing import ResponseError
from resilient_imagen.providers.streaming_body import StreamingJsonBody
from resilient_imagen.reasons import Reason

READERS = {"google": google_response.read_answer, "openai": openai_response.read_answer}
VENDORS = pytest.mark.parametrize("vendor", READERS)
LARGE = PNG + bytes(range(256)) * 4000
LARGE64 = base64.b64encode(LARGE).decode()
URL64 = LARGE64.replace("+", "-").replace("/", "_")


def answer(vendor: str, written: str) -> bytes:
    """Return a vendor's response with this base64 for its image."""
    body = google_body() if vendor == "google" else openai_body()
    return json.dumps(body).replace(PNG64, written).encode()


def outcome(vendor: str, body: StreamingJsonBody) -> ProviderResult | Reason:
    try:
        return READERS[vendor](body, "asked-model")
    except ResponseError as error:
        return error.failure.reason


@VENDORS
@pytest.mark.parametrize(
    ("written", "on_the_way"),
    [
        (LARGE64, True),
        (LARGE64.rstrip("="), True),
        (LARGE64.replace("=", "\\u003d"), True),
        (URL64, True),
        (LARGE64[:-9] + "\\n" + LARGE64[-9:], True),
        (LARGE64 + "==", False),
        (LARGE64.replace("/", "\\/"), False),
        (LARGE64[:700_000] + " " + LARGE64[700_000:], False),
        (f"data:image/png;base64,{LARGE64}", False),
        ("\\r\\n".join(LARGE64[at : at + 76] for at in range(0, len(LARGE64), 76)), False),
    ],
    ids=str.split("plain unpadded html url late excess slashes spaced data-url wrapped"),
)
def test_every_notation_of_an_image_is_read(vendor: str, written: str, on_the_way: bool) -> None:
    """Escapes, alphabets, line breaks and padding do not change the decoded image."""
    body = body_of(answer(vendor, written))
    read = outcome(vendor, body)
    assert isinstance(read, ProviderResult)
    assert read.images[0].data == LARGE
    assert (len(body.text) < len(LARGE64)) is on_the_way


@VENDORS
@pytest.mark.parametrize("broken", ["!", "=", "é", "\\u0000", '", "x": "'])
@pytest.mark.parametrize("at", [70_001, len(LARGE64) - 11])
def test_no_broken_image_is_delivered(vendor: str, broken: str, at: int) -> None:
    """An image string with invalid base64 is rejected, wherever the error is in it."""
    body = body_of(answer(vendor, LARGE64[:at] + broken + LARGE64[at:]))
    assert outcome(vendor, body) is Reason.INVALID_RESPONSE


FIELDS = [
    "candidates",
    "content",
    "parts",
    "inlineData",
    "data",
    "error",
    "b64_json",
    "finishReason",
]
TEXTS = st.one_of(
    st.sampled_from([PNG64, PNG64.rstrip("="), f"data:image/png;base64,{PNG64}", f'"{PNG64}', ""]),
    st.text('AbC+/-_="\\\n ,:1é', max_size=60),
    st.tuples(st.just(PNG64), st.text('Ab+/-="\\\n', max_size=9)).map("".join),
)
VALUES = st.recursive(
    TEXTS | st.none() | st.integers() | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS | st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=12,
)
SHAPES = st.one_of(
    VALUES,
    TEXTS.map(lambda text: openai_body(data=[{"b64_json": text}])),
    st.lists(TEXTS, max_size=3).map(
        lambda texts: google_body(*({"inlineData": {"data": text}, "text": text} for text in texts))
    ),
)


@settings(max_examples=400)
@given(SHAPES, st.integers(16, 40), st.lists(st.integers(0, 300)), st.booleans())
@example(openai_body(data=[{"b64_json": f'{PNG64}"{PNG64}'}]), 16, [], True)
@example(google_body({"inlineData": {"data": PNG64}, "text": f'"{PNG64}'}), 16, [30, 90], True)
@example({PNG64: None, "error": PNG64}, 16, [], False)
def test_incremental_decoding_does_not_change_the_result(
    value: Any, long: int, cuts: list[int], ascii_only: bool
) -> None:
    """JSON that is cut into any parts gives the same result as parsed as a whole."""
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parts = [data[start:end] for start, end in pairwise(edges)]
    for vendor in READERS:
        whole = body_of(data, long=len(data) + 1)
        assert whole.text == data
        assert outcome(vendor, body_of(*parts, long=long)) == outcome(vendor, whole)


@settings(max_examples=300)
@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([b'"', b"\\", PNG64.encode()]))))
def test_any_bytes_are_accepted(parts: list[bytes]) -> None:
    """No bytes raise an error, and bytes that cannot be base64 are kept completely."""
    body = body_of(*parts, long=8)
    given_bytes = b"".join(parts)
    assert len(body.text) <= len(given_bytes) + 32 * (given_bytes.count(b'"') + 1)
    if b'"' not in given_bytes:
        assert body.text == given_bytes


@VENDORS
def test_a_body_that_ends_within_an_image_is_invalid(vendor: str) -> None:
    """A body that ends inside an image is invalid, and its text has the received base64."""
    cut = answer(vendor, LARGE64)[:300_000]
    body = body_of(cut)
    assert body.text == cut
    assert outcome(vendor, body) is Reason.INVALID_RESPONSE


def test_an_image_is_in_memory_once() -> None:
    """Parsing a response takes little more memory than the image's bytes."""
    image = PNG + bytes(8_000_000)
    parts = answer("google", base64.b64encode(image).decode())
    pieces = [parts[at : at + 2**16] for at in range(0, len(parts), 2**16)]
    del parts
    outcome("google", body_of(answer("google", PNG64)))  # builds the decoder
    tracemalloc.start()
    try:
        read = outcome("google", body_of(*pieces))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(read, ProviderResult)
    assert read.images[0].data == image
    assert peak < 1.3 * len(image)
