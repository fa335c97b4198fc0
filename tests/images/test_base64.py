"""Base64 decoding accepts the variants that are in use."""

from __future__ import annotations

import asyncio
import base64
import random
import threading
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen.images import base64_codec
from resilient_imagen.images.base64_codec import (
    decode_base64,
    decode_base64_async,
    encode_base64,
    encode_base64_async,
)
from resilient_imagen.images.image_errors import UnusableImageError

LARGE = random.Random(7).randbytes(2**20 * 2 + 1)


@given(st.binary(max_size=500), st.sampled_from(["", "data:image/png;base64,", "DATA:;BASE64, "]),
       st.booleans(), st.booleans(), st.booleans())  # fmt: skip
def test_all_variants_of_base64_are_decoded(
    data: bytes, prefix: str, urlsafe: bool, padded: bool, wrapped: bool
) -> None:
    """Data URLs, both alphabets, lost padding and line breaks decode to the same bytes."""
    text = (base64.urlsafe_b64encode if urlsafe else base64.b64encode)(data).decode()
    text = text if padded else text.rstrip("=")
    text = "\r\n ".join(text[at : at + 7] for at in range(0, len(text), 7)) if wrapped else text

    assert decode_base64(prefix + text) == data
    assert decode_base64((prefix + text).encode()) == data


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60)))
def test_any_other_input_is_rejected(junk: str | bytes) -> None:
    """Input is decoded, or rejected with the documented error."""
    with suppress(UnusableImageError):
        assert isinstance(decode_base64(junk), bytes)


@pytest.mark.parametrize(
    "text", ["QU=JD", "Q", "QUJ!", "QUJD=QUJD", "schön", b"\xff\xfe", "\ud800"]
)
def test_an_error_carries_no_content(text: str | bytes) -> None:
    """Neither the error nor its causes contain the rejected input."""
    with pytest.raises(UnusableImageError) as caught:
        decode_base64(text)

    assert caught.value.__context__ is None
    assert caught.value.args == ("is not valid base64",)


@pytest.mark.parametrize(
    "url", ["data:image/png,abc", "data:image/png;base64", "data:" + "a" * 2000]
)
def test_a_data_url_must_hold_base64(url: str) -> None:
    """Percent-encoded data URLs, and headers without end, are rejected by name."""
    with pytest.raises(UnusableImageError, match="data URL without base64"):
        decode_base64(url)


@pytest.mark.parametrize("extra", range(-4, 5))
def test_pieces_are_joined(extra: int) -> None:
    """Lengths around the piece boundaries decode and encode as a single call does."""
    data = LARGE[: base64_codec._BYTES_PIECE * 2 + extra]
    text = base64.b64encode(data).decode()

    assert encode_base64(data) == text
    assert decode_base64(text) == data
    assert decode_base64(text.rstrip("=")) == data


def test_long_wrapped_text_decodes() -> None:
    """Line breaks that shift the piece boundaries do not change the result."""
    assert decode_base64(base64.encodebytes(LARGE)) == LARGE


@pytest.mark.parametrize(("size", "off_loop"), [(1000, False), (2_000_000, True)])
def test_only_long_work_goes_to_a_thread(
    size: int, off_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short inputs are decoded on the event loop, long ones in a thread."""
    data, seen = LARGE[:size], []
    pieces = base64_codec._yielding_gil

    def spy(steps: range) -> object:
        seen.append(threading.current_thread() is not threading.main_thread())
        return pieces(steps)

    monkeypatch.setattr(base64_codec, "_yielding_gil", spy)

    async def there_and_back() -> bytes:
        return await decode_base64_async(await encode_base64_async(data))

    assert asyncio.run(there_and_back()) == data
    assert seen == [off_loop, off_loop]
