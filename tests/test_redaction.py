"""Nothing secret survives redaction."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from resilient_imagen.redaction import redact

LETTERS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=12)
KEYS = st.one_of(
    st.builds("AIza{}".format, LETTERS),
    st.builds("AQ.{}".format, LETTERS),
    st.builds("sk-proj-{}".format, LETTERS),
    st.builds("Bearer {}".format, LETTERS),
)
PROSE = st.text(max_size=80)
KINDS = (str.islower, str.isupper, str.isdigit)


@given(before=PROSE, key=KEYS, after=PROSE)
def test_keys_are_known_by_their_looks(before: str, key: str, after: str) -> None:
    """A key that nobody named is found between any other text."""
    secret = key.rpartition(" ")[2]
    assume(secret not in before + after)
    assert secret not in redact(f"{before} {key} {after}", limit=10_000)


@given(before=PROSE, secret=st.text(min_size=6, max_size=200), after=PROSE)
def test_named_secrets_are_taken_out_whole(before: str, secret: str, after: str) -> None:
    """A named secret does not survive, whatever stands around it."""
    plain = " ".join(secret.split())
    left = redact(before + secret + after, secrets=[secret], limit=10_000)
    if len(plain) >= 6:
        assert plain.lower() not in left.lower()


@given(
    prompt=st.text("abcdefgh ijklmnop qrstuvwxyz", min_size=60, max_size=300),
    start=st.integers(0, 30),
    before=st.text("ABC.! ", max_size=30),
)
def test_long_pieces_of_a_prompt_are_taken_out(prompt: str, start: int, before: str) -> None:
    """An echo that was cut short, written in capitals or spaced differently is one all the same."""
    piece = " ".join(prompt.split())[start : start + 40]
    echoed = piece.upper().replace(" ", "\n  ")
    left = redact(before + echoed, secrets=[prompt], limit=10_000).lower()
    words = " ".join(piece.split())
    windows = {words[at : at + 16] for at in range(len(words) - 15)}
    assert not any(window in left for window in windows)


@given(data=st.binary(min_size=60, max_size=5000), before=PROSE)
def test_pictures_are_taken_out(data: bytes, before: str) -> None:
    """Neither base64 nor a data URL of a picture is kept."""
    encoded = base64.b64encode(data).decode()
    for text in (encoded, f"data:image/png;base64,{encoded}", f'{{"b64_json": "{encoded}"}}'):
        assert encoded[8:40] not in redact(f"{before} {text}", limit=10_000)


@given(data=st.binary(min_size=200, max_size=2000), width=st.sampled_from([48, 60, 76]))
def test_pictures_in_lines_are_taken_out(data: bytes, width: int) -> None:
    """As mail and PEM files wrap base64: each line is too short for a picture, and is one."""
    assume(len(set(data)) > 60)  # a picture's bytes; not a page of one letter
    encoded = base64.b64encode(data).decode()
    lines = [encoded[at : at + width] for at in range(0, len(encoded), width)]
    assume(all(any(map(kind, line)) for line in lines for kind in KINDS if len(line) == width))
    left = redact("cannot read " + "\r\n".join(lines), limit=10_000)
    assert not any(line in left for line in lines if len(line) == width)


@given(text=st.text(max_size=2000), limit=st.integers(1, 400))
def test_the_result_is_one_bounded_printable_line(text: str, limit: int) -> None:
    """However long or odd the text is, what is kept is short and of one line."""
    left = redact(text, limit=limit)
    assert len(left) <= limit
    assert left.splitlines() in ([], [left])
    assert "\x1b" not in left


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<!DOCTYPE html><html><title>api | 520</title><p>x", "api | 520"),
        ("<html><body>no title</body></html>", "<html page>"),
        ("went wrong <html><title>Blocked</title>", "went wrong Blocked"),
        ("quota GenerateRequestsPerDayPerProjectPerModel-FreeTier of proj_1 in org-2", None),
        ("see https://ai.google.dev/gemini-api/docs/rate-limits", None),
        ("trace 4bf92f3577b34da6a3ce929d0e0e4736 of req_011CSHoEeqs5C35K2UUqR7Fy", None),
        ("in projects/my-project-1/locations/us-central1/models/x", None),
        ("Consumer 'api_key:AIza-MASKED-KEY' suspended", "Consumer 'api_[…] suspended"),
        ("?key=abc&alt=sse x-goog-api-key: 123", "?[…]&alt=sse x-goog-api-[…]"),
        ("API key provided: undefined.", "API […]"),
    ],
)
def test_examples(text: str, expected: str | None) -> None:
    """Pages become their title, keys go, ids and addresses that help stay."""
    assert redact(text) == (text if expected is None else expected)


ESCAPES: dict[str, Callable[[str], str]] = {
    "address": quote,
    "form": quote_plus,
    "page": html.escape,
    "JSON": json.dumps,
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
}


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
@given(secret=st.text("abc xyz ABC 019 äß日 &<>%+\"'\\/.,!", min_size=16, max_size=80))
def test_escaped_echoes_are_taken_out_like_plain_ones(
    escape: Callable[[str], str], secret: str
) -> None:
    """A prompt that came back inside an address, a page or a string of JSON is still the prompt."""
    assume(len(" ".join(secret.split())) >= 16)
    left = redact(f"Bad: {escape(secret)}", secrets=[secret], limit=10_000).lower()
    words = " ".join(secret.split()).lower()
    assert not any(words[at : at + 16] in left for at in range(len(words) - 15))


@pytest.mark.parametrize("kind", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF", b"GIF89a"])
def test_the_beginning_of_a_picture_is_known_however_short(kind: bytes) -> None:
    """An echo that was cut after a few dozen letters is a picture all the same."""
    encoded = base64.b64encode(kind + bytes(range(24))).decode()
    assert encoded[8:] not in redact(f"cannot read {encoded}")
