"""Redaction removes all secrets."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from resilient_imagen.redaction import KnownSecret, redact, remove_secret

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
def test_keys_are_detected_by_their_format(before: str, key: str, after: str) -> None:
    """An unregistered key is found within any other text."""
    secret = key.rpartition(" ")[2]
    assume(secret not in before + after)
    assert secret not in redact(f"{before} {key} {after}", limit=10_000)


@given(before=PROSE, secret=st.text(min_size=6, max_size=200), after=PROSE)
def test_registered_secrets_are_removed_completely(before: str, secret: str, after: str) -> None:
    """A registered secret is removed, whatever surrounds it."""
    plain = " ".join(secret.split())
    left = redact(before + secret + after, secrets=[secret], limit=10_000)
    if len(plain) >= 6:
        assert plain.lower() not in left.lower()


@given(
    prompt=st.text("abcdefgh ijklmnop qrstuvwxyz", min_size=60, max_size=300),
    start=st.integers(0, 30),
    before=st.text("ABC.! ", max_size=30),
)
def test_long_pieces_of_a_prompt_are_removed(prompt: str, start: int, before: str) -> None:
    """A truncated, capitalized or differently spaced echo is removed."""
    piece = " ".join(prompt.split())[start : start + 40]
    echoed = piece.upper().replace(" ", "\n  ")
    left = redact(before + echoed, secrets=[prompt], limit=10_000).lower()
    words = " ".join(piece.split())
    windows = {words[at : at + 16] for at in range(len(words) - 15)}
    assert not any(window in left for window in windows)


@given(data=st.binary(min_size=60, max_size=5000), before=PROSE)
def test_images_are_removed(data: bytes, before: str) -> None:
    """Base64 and data URLs of an image are removed."""
    encoded = base64.b64encode(data).decode()
    for text in (encoded, f"data:image/png;base64,{encoded}", f'{{"b64_json": "{encoded}"}}'):
        assert encoded[8:40] not in redact(f"{before} {text}", limit=10_000)


@given(data=st.binary(min_size=200, max_size=2000), width=st.sampled_from([48, 60, 76]))
def test_wrapped_images_are_removed(data: bytes, width: int) -> None:
    """Base64 that is wrapped as in mail and PEM files is removed."""
    assume(len(set(data)) > 60)  # an image's bytes; not a page of one letter
    encoded = base64.b64encode(data).decode()
    lines = [encoded[at : at + width] for at in range(0, len(encoded), width)]
    assume(all(any(map(kind, line)) for line in lines for kind in KINDS if len(line) == width))
    left = redact("cannot read " + "\r\n".join(lines), limit=10_000)
    assert not any(line in left for line in lines if len(line) == width)


@given(text=st.text(max_size=2000), limit=st.integers(1, 400))
def test_the_result_is_one_bounded_printable_line(text: str, limit: int) -> None:
    """The result of any input is a short printable line."""
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
    """Pages become their title, keys are removed, useful ids and addresses stay."""
    assert redact(text) == (text if expected is None else expected)


ESCAPES: dict[str, Callable[[str], str]] = {
    "address": quote,
    "form": quote_plus,
    "page": html.escape,
    "JSON": json.dumps,
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "program": lambda text: ascii(text)[1:-1],
    "bytes": lambda text: repr(text.encode()),
    "every byte in hexadecimal": lambda text: "".join(f"\\x{byte:02x}" for byte in text.encode()),
    "every byte in an address": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "every letter as an entity": lambda text: "".join(f"&#x{ord(each):x};" for each in text),
    "every letter in JSON": lambda text: "".join(f"\\u{ord(each):04x}" for each in text),
}


@pytest.mark.no_cover
@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
@given(secret=st.text("abc xyz ABC 019 äß日 &<>%+\"'\\/.,!", min_size=16, max_size=80))
def test_escaped_echoes_are_removed(escape: Callable[[str], str], secret: str) -> None:
    """A prompt echoed inside a URL, a page or a JSON string is removed."""
    secret += "z"  # a lone backslash at its end would be taken for the escape of what follows
    assume(len(" ".join(secret.split())) >= 16)
    left = redact(f"Bad: {escape(secret)}", secrets=[secret], limit=10_000).lower()
    words = " ".join(secret.split()).lower()
    assert not any(words[at : at + 16] in left for at in range(len(words) - 15))


BREAKS = (
    "\n", "\r\n    ", " ", "\u00ad", "\u200b", "\u2060", "\ufeff", "\u200d\u200c", "\u180e", "\x00",
    "\\n", "\\xad", "\\u200b", "\\u00AD", "%0A", "%E2%80%8B", "&shy;", "&#8203;",
)  # fmt: skip


@given(
    secret=st.text("abcXYZ019_-.", min_size=8, max_size=40),
    cuts=st.dictionaries(st.integers(0, 39), st.sampled_from(BREAKS), min_size=1, max_size=6),
)
def test_broken_keys_are_removed(secret: str, cuts: dict[int, str]) -> None:
    """Line ends, soft hyphens, zero-width characters and escapes in a key do not hide it."""
    broken = "".join(cuts.get(place, "") + letter for place, letter in enumerate(secret))
    left = redact(f"<<{broken}>>", secrets=[secret], limit=10_000)
    assert left.strip("<> ") == "[…]"


@given(
    secret=st.text("abcXYZ019", min_size=6, max_size=30),
    mask=st.lists(st.booleans(), min_size=30, max_size=30),
    form=st.sampled_from(["\\x{:02x}", "%{:02x}", "&#{};", "&#x{:X};", "\\u{:04x}", "\\u{{{:x}}}"]),
)
def test_partly_escaped_keys_are_removed(secret: str, mask: list[bool], form: str) -> None:
    """A key with any escaped characters is removed."""
    escaped = "".join(
        form.format(ord(letter)) if hidden else letter
        for letter, hidden in zip(secret, mask, strict=False)
    )
    assert redact(f"key <{escaped}>", secrets=[secret]) == "key <[…]>"


@given(
    text=st.text("abcABC +\n\u200b\u00adİΣςß", max_size=120),
    secret=st.text("abcABC +\n\u200b\u00adİΣςß", max_size=60),
)
def test_the_result_has_no_piece_of_the_secret(text: str, secret: str) -> None:
    """No piece of the secret is left, and texts without a piece of it are unchanged."""

    def words_of(value: str) -> list[str]:
        seen = "".join(letter for letter in value if letter not in "\u200b\u00ad")
        return "".join(map(_lower, seen)).replace("+", " ").split()

    gap = " " if len(words_of(secret)) > 1 else ""

    def folded(value: str) -> str:
        return gap.join(words_of(value))

    needle = folded(secret)
    size = min(16, len(needle))
    left = remove_secret(text, secret)
    if not size:
        assert left == text
        return
    pieces = {needle[at : at + size] for at in range(len(needle) - size + 1)}
    haystack = folded(text)
    found = any(haystack[at : at + size] in pieces for at in range(len(haystack)))
    assert (left != text) == found
    for rest in left.split("[…]"):
        plain = folded(rest)
        assert not any(plain[at : at + size] in pieces for at in range(len(plain)))


def _lower(letter: str) -> str:
    return {"İ": "i", "ς": "Σ".lower()}.get(letter, letter.lower())


@given(
    prompt=st.text("ab ", min_size=300, max_size=2000),
    start=st.integers(0, 200),
    length=st.integers(16, 60),
    swap=st.booleans(),
)
def test_pieces_are_found_wherever_they_are_in_either_string(
    prompt: str, start: int, length: int, swap: bool
) -> None:
    """A piece of the longer string is found in the shorter one, in either role."""
    words = " ".join(prompt.split())
    piece = words[start : start + length].strip()
    assume(len(piece) >= 16)
    text, secret = (words, piece + " " * 3) if swap else (f"«{piece}»", words)
    assert piece not in remove_secret(text, secret)


def test_known_secrets_are_removed_from_every_text_while_they_live() -> None:
    """A message of one vendor may contain another vendor's key."""
    message = "upstream refused gw_9f8e7d6c5b4a32"
    assert redact(message) == message
    known = KnownSecret("gw_9f8e7d6c5b4a32")
    assert redact(message) == "upstream refused […]"
    del known
    assert redact(message) == message


def test_known_secrets_that_could_be_words_are_left() -> None:
    """A key such as ``k`` or ``none`` is not removed, because messages would be unreadable."""
    known = KnownSecret("on")
    assert redact("connection refused") == "connection refused"
    del known


def test_a_known_secret_does_not_show_itself() -> None:
    """Neither repr nor attributes contain the key."""
    known = KnownSecret("gw_9f8e7d6c5b4a32")
    assert "9f8e" not in repr(known)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("letters", "message"),
    [
        ("a red lighthouse on a cliff, ", "zebra " * 1333),
        ("a red lighthouse on a cliff, ", "a red lighthouse on a rock. " * 285),
        ("a", "a" * 8000),
        ("%41", "%41" * 2666),
        ("é\u200b", "e\u200b" * 4000),
    ],
    ids=["prose", "near", "one letter", "escapes", "invisible"],
)
def test_redacting_a_prompt_of_a_million_characters_is_fast(letters: str, message: str) -> None:
    """The duration grows with the sum of both lengths, not with their product."""
    prompt = (letters * (1_000_000 // len(letters) + 1))[:1_000_000]
    for _ in range(3):
        assert len(redact(message, secrets=[prompt], limit=10_000)) <= len(message)


@pytest.mark.parametrize("text", ["&#" + "9" * 5000 + ";", "\\u{ffffff}", "\\UFFFFFFFF", "\\ud800"])
def test_invalid_code_points_are_kept_as_text(text: str) -> None:
    """Escapes beyond Unicode, surrogates and huge numbers are kept as text."""
    assert redact(text, limit=10_000).isprintable()


@pytest.mark.parametrize("kind", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF", b"GIF89a"])
def test_the_beginning_of_an_image_is_removed(kind: bytes) -> None:
    """An image's echo that is cut after a few dozen characters is removed."""
    encoded = base64.b64encode(kind + bytes(range(24))).decode()
    assert encoded[8:] not in redact(f"cannot read {encoded}")


@pytest.mark.parametrize("text", [r"bad \U0000D800 here", "bad \ud800 here", r"bad \u{DFFF} here"])
def test_the_result_can_be_encoded(text: str) -> None:
    """The result has no unpaired surrogates, which log handlers cannot encode."""
    assert redact(text).encode().startswith(b"bad")
