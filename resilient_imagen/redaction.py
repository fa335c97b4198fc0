"""Redaction: remove keys, prompts and image data from text that others wrote, before it is kept.

Vendors echo what they were sent: a suspended key comes back three times in the error that says so,
a refused prompt in the refusal, a page of HTML instead of either. All work is linear in the length
of the text, which is cut first, and in the length of each secret: redaction runs on event loops.
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
"""Stands for what was taken out; without letters, so that it can be part of no secret."""
_MAX_READ: Final = 8000
"""Characters looked at; what comes later is dropped unread."""
_PIECE: Final = 16
"""So many characters of a secret in a row are too many."""
_SHORTEST_KNOWN: Final = 6
"""Characters of a secret that is removed from everybody's text: shorter ones are parts of words."""

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
        # A key by the name of where it stands.
        r"\b(?:bearer|basic)\s+[\w.~+/=*-]{6,}",
        r"(?:key|token|secret|password|authorization)(?: provided)?[\"']?\s*[:=]\s*[^\s,;&}]+",
        # A key by its looks.
        r"\bAIza[\w*-]{4,}",
        r"\bAQ\.[\w*.-]{6,}",
        r"\bya29\.[\w*.-]{4,}",
        r"\bsk-[\w*-]{4,}",
        r"\beyJ[\w-]{8,512}\.[\w.-]+",
        # Base64 of a picture, by its beginning; of anything long. Words and ids are shorter.
        r"(?:iVBORw0KGgo|/9j/|UklGR|R0lGOD)[\w+/=-]{4,}",
        r"(?<![\w+/-])[\w+/-]{64,}={0,2}",
        # The same in shorter lines: capitals, small letters and digits in no order of a word's.
        r"(?<![\w+/-])(?-i:(?=[\w+/-]*[a-z])(?=[\w+/-]*[A-Z])(?=[\w+/-]*\d))[\w+/-]{40,}={0,2}",
    )
)


class KnownSecret:
    """A secret that ``redact`` removes from every text while this object lives.

    One vendor may answer with another one's key, from a relay's log or a mixed-up setting. So each
    provider holds its own key as one of these, and every redaction of the process knows them all.
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
    """Make one line of at most ``limit`` characters that may be logged.

    Removed are every KnownSecret and the given ``secrets`` (whole, or pieces of 16 characters and
    more, whatever their case, spacing and escapes), whatever looks like a key, data URLs, base64
    and invisible characters. A page of HTML is reduced to its title.
    """
    plain = _one_line(unescape(_without_html(text[:_MAX_READ])))
    # One atomic copy: other threads make and drop providers.
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
    """Undo the escapes in ``text`` and remove ``secret``; see ``without``."""
    return remove_secret(unescape(text), secret)


# --- escapes ---------------------------------------------------------------------------------

_LAYERS: Final = 4
"""Escapes within escapes that are undone."""
_ESCAPE: Final = re.compile(
    r"(?P<bytes>(?:%[0-9a-fA-F]{2})+|(?:\\x[0-9a-fA-F]{2})+)"
    r"|(?P<utf16>(?:\\u[0-9a-fA-F]{4})+)"
    r"|\\u\{(?P<braced>[0-9a-fA-F]{1,6})\}|\\U(?P<code>[0-9a-fA-F]{8})"
    r"|\\(?P<blank>[nrtbf])|\\(?P<letter>[\"'/\\])"
    r"|&(?:#\w{1,10}|\w{2,31});?"
)
_LATIN1: Final = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}
"""Bytes that are no UTF-8 are letters, each by its number."""
_BLANK: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def unescape(text: str) -> str:
    """Undo the escapes of addresses, pages of HTML, JSON and program code, also nested ones."""
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
    """Remove every piece of a secret of 16 characters, or all of it if it is shorter.

    Case, invisible characters and the kind of white space do not matter. White space does not
    matter at all for a secret that has none, such as a key: line ends may break it.
    """
    folds: dict[str, tuple[str, list[int]]] = {}
    spans: set[tuple[int, int]] = set()
    for secret in dict.fromkeys(form for each in secrets for form in (each, unescape(each))):
        words = _UNSEEN.sub("", _lowered(secret).replace("+", " ")).split()  # + is a form's space
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
    """Convert to lower case, letter by letter: the length stays, and no letter's neighbours matter.

    Only one letter's lower case is two, and only sigma's depends on where it stands.
    """
    return text.replace("\u0130", "i").lower().replace("\u03c2", "\u03c3")


def _folded(text: str, gap: str) -> tuple[str, list[int]]:
    """Convert to what is compared, with the place in ``text`` of each of its characters."""
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
    """Collect the pieces of ``size`` characters that occur in both strings.

    Every such piece holds a block of half its size that begins at a multiple of ``stride``. So of
    the longer string, a prompt of a million characters perhaps, only those blocks are looked up.
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
    """Find the stretches of ``text`` that consist of ``pieces``, overlapping ones joined."""
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
