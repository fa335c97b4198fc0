"""Redaction: remove keys, prompts and image data from third-party text before it is kept.

Vendors echo the request: an error about a suspended key may repeat the key three times, and a
refusal the prompt. Redaction runs on event loops, so its time is linear in the length of the text,
which is truncated first, and of each secret.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["KnownSecret", "redact", "remove_quoted_secret", "remove_secret", "unescape"]

REDACTED: Final = "[…]"
"""Replaces removed text; it has no letters, so it cannot be part of a secret."""
_MAX_READ: Final = 8000
"""Characters that are redacted; the rest of a string is dropped."""
_PIECE: Final = 16
"""Shortest part of a secret, in characters, that is removed."""
_SHORTEST_KNOWN: Final = 6
"""Shortest secret, in characters, that is removed: shorter ones are parts of ordinary words."""

_HTML: Final = re.compile(r"<(?:!doctype html|html)\b", re.IGNORECASE)
_TITLE: Final = re.compile(r"<title[^<>]*>([^<]*)", re.IGNORECASE)
# Unicode's Default_Ignorable_Code_Point (soft hyphen, zero width, text direction, variation
# selectors, tags), the control characters that are not white space, and unpaired surrogates, which
# cannot be encoded.
_INVISIBLE: Final = (
    r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\ud800-\udfff"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_UNSEEN: Final = re.compile(f"[{_INVISIBLE}]+")
_GAP: Final = re.compile(rf"[\s+{_INVISIBLE}]+")
_PATTERNS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"data:[\w.+-]+/[\w.+-]+[^,\s]{0,80},[^\s\"'<>]*",
        # A key by the name of its field.
        r"\b(?:bearer|basic)\s+[\w.~+/=*-]{6,}",
        r"(?:key|token|secret|password|authorization)(?: provided)?[\"']?\s*[:=]\s*[^\s,;&}]+",
        # A key by its form.
        r"\bAIza[\w*-]{4,}",
        r"\bAQ\.[\w*.-]{6,}",
        r"\bya29\.[\w*.-]{4,}",
        r"\bsk-[\w*-]{4,}",
        r"\beyJ[\w-]{8,512}\.[\w.-]+",
        # Numbers of Google Cloud's projects, and its service accounts.
        r"\bprojects/\d{6,}",
        r"\bproject[\s_:=#\"'`]+(?:(?:number|id)[\s:=#\"'`]+)?\d{6,}",
        r"[\w.-]+@[\w.-]+\.gserviceaccount\.com",
        # Base64 of an image, by its beginning; any other long base64. Words and ids are shorter.
        r"(?:iVBORw0KGgo|/9j/|UklGR|R0lGOD)[\w+/=-]{4,}",
        r"(?<![\w+/-])[\w+/-]{64,}={0,2}",
        # Base64 in shorter lines: capitals, small letters and digits mixed.
        r"(?<![\w+/-])(?-i:(?=[\w+/-]*[a-z])(?=[\w+/-]*[A-Z])(?=[\w+/-]*\d))[\w+/-]{40,}={0,2}",
    )
)


class KnownSecret:
    """A secret that ``redact`` removes from every text while this object is alive.

    A vendor may return another vendor's key, from a relay's log or a mixed-up setting. So each
    provider registers its key, and ``redact`` removes the keys of all providers.
    """

    __slots__ = ("__weakref__", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        if len(value) >= _SHORTEST_KNOWN:
            _known[id(self)] = self

    @property
    def value(self) -> str:
        """The secret itself."""
        return self._value


_known: Final[WeakValueDictionary[int, KnownSecret]] = WeakValueDictionary()


def redact(text: str, *, secrets: Iterable[str] = (), limit: int = 300) -> str:
    """Return one line of at most ``limit`` characters that is safe to log.

    It removes every KnownSecret and the given ``secrets`` (whole, or parts of 16 characters and
    more, in any case, spacing and escapes), everything that looks like a key, data URLs, base64 and
    invisible characters. An HTML page is reduced to its title.
    """
    plain = _one_line(unescape(_without_html(text[:_MAX_READ])))
    # Copied atomically: other threads create and drop providers.
    known = [secret.value for ref in _known.valuerefs() if (secret := ref()) is not None]
    plain = remove_secret(plain, *known, *secrets)
    for pattern in _PATTERNS:
        plain = pattern.sub(REDACTED, plain)
    return plain if len(plain) <= limit else plain[: max(0, limit - 1)] + "…"


def _without_html(text: str) -> str:
    page = _HTML.search(text)
    if page is None:
        return text
    title = _TITLE.search(text, page.start())
    return text[: page.start()] + (title[1] if title and title[1].strip() else "<html page>")


def _one_line(text: str) -> str:
    return " ".join(_UNSEEN.sub("", text).split())


def remove_quoted_secret(text: str, secret: str) -> str:
    """Undo the escapes in ``text`` and remove ``secret``; see ``remove_secret``."""
    return remove_secret(unescape(text), secret)


# --- escapes ---------------------------------------------------------------------------------

_LAYERS: Final = 4
"""Levels of nested escapes that are undone."""
_ESCAPE: Final = re.compile(
    r"(?P<bytes>(?:%[0-9a-fA-F]{2})+|(?:\\x[0-9a-fA-F]{2})+)"
    r"|(?P<utf16>(?:\\u[0-9a-fA-F]{4})+)"
    r"|\\u\{(?P<braced>[0-9a-fA-F]{1,6})\}|\\U(?P<code>[0-9a-fA-F]{8})"
    r"|\\(?P<blank>[nrtbf])|\\(?P<letter>[\"'/\\])"
    r"|&(?:#\w{1,10}|\w{2,31});?"
)
_LATIN1: Final = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}
"""Surrogates of bytes that are not UTF-8, mapped to the characters of Latin-1."""
_BLANK: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def unescape(text: str) -> str:
    """Undo the escapes of URLs, HTML, JSON and program code, including nested ones."""
    for _ in range(_LAYERS):
        if not any(mark in text for mark in "%\\&"):
            break
        before, text = text, _ESCAPE.sub(_plain, text)
        if text == before:
            break
    return text


def _plain(escape: re.Match[str]) -> str:
    if escape["blank"]:
        return " "
    if escape["letter"]:
        return escape["letter"]
    return _BLANK.sub(" ", _decoded(escape))


def _decoded(escape: re.Match[str]) -> str:
    if escape["bytes"]:
        data = bytes.fromhex(escape["bytes"].replace("%", "").replace(r"\x", ""))
        return data.decode("utf-8", "surrogateescape").translate(_LATIN1)
    if escape["utf16"]:
        units = bytes.fromhex(escape["utf16"].replace(r"\u", ""))
        return units.decode("utf-16-be", "replace")
    if number := escape["braced"] or escape["code"]:
        code = int(number, 16)
        return chr(code) if code <= 0x10FFFF else escape[0]  # noqa: PLR2004 - Unicode's last
    return html.unescape(escape[0])


# --- finding a secret ------------------------------------------------------------------------


def remove_secret(text: str, *secrets: str) -> str:
    """Remove every part of a secret that has 16 characters or more; a shorter secret as a whole.

    Case, invisible characters and the kind of white space are ignored. For a secret without white
    space, such as a key, white space in the text is ignored, too: line breaks may split it.
    """
    folds: dict[str, tuple[str, list[int]]] = {}
    spans: set[tuple[int, int]] = set()
    for secret in dict.fromkeys(form for each in secrets for form in (each, unescape(each))):
        words = _UNSEEN.sub(
            "", _lowered(secret).replace("+", " ")
        ).split()  # + is a space in form data
        gap = " " if len(words) > 1 else ""
        needle = gap.join(words)
        size = min(_PIECE, len(needle))
        if not size or len(text) < size:
            continue
        if gap not in folds:
            folds[gap] = _folded(text, gap)
        folded, places = folds[gap]
        for start, end in _spans(folded, _shared(folded, needle, size), size):
            spans.add((places[start], places[end - 1] + 1))
    return _cut(text, sorted(spans))


def _cut(text: str, spans: list[tuple[int, int]]) -> str:
    kept: list[str] = []
    copied = 0
    for start, end in spans:
        if start > copied or not kept:
            kept += [text[copied:start], REDACTED]
        copied = max(copied, end)
    return "".join(kept) + text[copied:]


def _lowered(text: str) -> str:
    """Convert to lower case by character, so that the length and each position stay the same.

    In `str.lower` one character becomes two, and sigma depends on its position in the word.
    """
    return text.replace("\u0130", "i").lower().replace("\u03c2", "\u03c3")


def _folded(text: str, gap: str) -> tuple[str, list[int]]:
    """Return the form used for comparison, and the position in ``text`` of each character."""
    lowered = _lowered(text)
    parts: list[str] = []
    places: list[int] = []
    end = 0
    for found in _GAP.finditer(lowered):
        parts.append(lowered[end : found.start()])
        places += range(end, found.start())
        if gap and not _UNSEEN.fullmatch(found[0]):
            parts.append(gap)
            places.append(found.start())
        end = found.end()
    places += range(end, len(lowered))
    return "".join(parts) + lowered[end:], places


def _shared(one: str, other: str, size: int) -> set[str]:
    """Collect the substrings of ``size`` characters that occur in both strings.

    Every such substring contains a block of half its size that begins at a multiple of ``stride``.
    So only those blocks of the longer string, perhaps a prompt of a million characters, are looked
    up.
    """
    short, long = sorted((one, other), key=len)
    half = (size + 1) // 2
    stride = size - half + 1
    blocks = {short[at : at + half] for at in range(len(short) - half + 1)}
    pieces = {short[at : at + size] for at in range(len(short) - size + 1)}
    found: set[str] = set()
    seen: set[str] = set()
    for at in range(0, len(long) - half + 1, stride):
        if long[at : at + half] in blocks:
            around = long[max(0, at - stride + 1) : at + size]
            if around not in seen:
                seen.add(around)
                windows = {around[i : i + size] for i in range(len(around) - size + 1)}
                found |= windows & pieces
    return found


def _spans(text: str, pieces: set[str], size: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of ``text`` that consist of ``pieces``; overlapping ones are merged."""
    if not pieces:
        return
    start = end = -1
    for at in range(len(text) - size + 1):
        if text[at : at + size] in pieces:
            if at > end:
                if end > 0:
                    yield start, end
                start = at
            end = at + size
    if end > 0:
        yield start, end
