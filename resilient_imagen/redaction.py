"""The one place where foreign text is made fit to be kept: no keys, no prompts, no pictures.

Vendors echo what they were sent: a suspended key comes back three times in the error that says so,
a refused prompt in the refusal, a page of HTML instead of either.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["redact", "unescaped", "without", "without_echo"]

_GONE: Final = "[…]"
"""Stands for what was taken out; without letters, so that it can be part of no secret."""
_MAX_READ: Final = 8000
"""Characters looked at; what comes later is dropped unread."""
_PIECE: Final = 16
"""So many characters of a secret in a row are too many."""

_HTML: Final = re.compile(r"<(?:!doctype html|html)\b", re.IGNORECASE)
_TITLE: Final = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
# Also the unprintable ones beyond ASCII: line separators, text direction, zero width.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+")
_SPACE: Final = re.compile(r"\s+")
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
        r"\beyJ[\w-]{8,}\.[\w.-]+",
        # Base64 of a picture, by its beginning; of anything long. Words and ids are shorter.
        r"(?:iVBORw0KGgo|/9j/|UklGR|R0lGOD)[\w+/=-]{4,}",
        r"(?<![\w+/-])[\w+/-]{64,}={0,2}",
        # The same in shorter lines: capitals, small letters and digits in no order of a word's.
        r"(?<![\w+/-])(?-i:(?=[\w+/-]*[a-z])(?=[\w+/-]*[A-Z])(?=[\w+/-]*\d))[\w+/-]{40,}={0,2}",
    )
)


def redact(text: str, *, secrets: Iterable[str] = (), limit: int = 300) -> str:
    """One line of at most ``limit`` characters that may be logged.

    Taken out are the given ``secrets`` (keys, prompts: whole, or pieces of 16 characters and more,
    whatever their case and spacing), whatever looks like a key, data URLs, base64 and control
    characters. A page of HTML is reduced to its title.
    """
    plain = _one_line(_without_html(text[:_MAX_READ]))
    for secret in secrets:
        plain = without_echo(plain, secret, tidy=_one_line)
    plain = _one_line(unescaped(plain))
    for pattern in _PATTERNS:
        plain = pattern.sub(_GONE, plain)
    return plain if len(plain) <= limit else plain[: max(0, limit - 1)] + "…"


def _without_html(text: str) -> str:
    page = _HTML.search(text)
    if page is None:
        return text
    title = _TITLE.search(text, page.start())
    return text[: page.start()] + (title[1] if title and title[1].strip() else "<html page>")


def without_echo(text: str, secret: str, *, tidy: Callable[[str], str] = str) -> str:
    """``text``, its escapes undone, without ``secret`` in any form; see ``without``.

    Args:
        text: What a vendor said.
        secret: What it was sent.
        tidy: Done to both before they are compared.
    """
    for undo in (str, unescaped):
        text = tidy(undo(text))
        for form in {secret, unescaped(secret)}:
            text = without(text, tidy(form))
    return text


_ESCAPED: Final = re.compile(r"%[0-9a-f]{2}|&[#\w]+;|\\", re.IGNORECASE)
_BACKSLASHED: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([nrtbf])|([\"'/\\]))")
_LAYERS: Final = 3
"""Escapes within escapes that are undone."""


def unescaped(text: str) -> str:
    """``text`` as it was before it was put into an address, a page or a string of JSON."""
    for _ in range(_LAYERS):
        if _ESCAPED.search(text) is None:
            break
        text = _BACKSLASHED.sub(_plain, html.unescape(unquote(text)))
    return text


def _plain(escape: re.Match[str]) -> str:
    if escape[1]:
        letter = chr(int(escape[1], 16))
        return letter if letter.isprintable() else " "
    return escape[3] or " "


def _one_line(text: str) -> str:
    return _SPACE.sub(" ", _CONTROL.sub(" ", text)).strip()


def without(text: str, secret: str) -> str:
    """``text`` without any piece of ``secret`` of 16 characters, or all of it if it is shorter."""
    if not secret:
        return text
    size = min(_PIECE, len(secret))
    folded, haystack = _folded(secret), _folded(text)
    pieces: str | set[str] = folded  # read through for a short text, looked up in for a long one
    if len(haystack) * 8 > len(folded):
        pieces = {folded[at : at + size] for at in range(len(folded) - size + 1)}
    kept = []
    at = copied = 0
    while at <= len(haystack) - size:
        if haystack[at : at + size] not in pieces:
            at += 1
            continue
        end = at + size
        while haystack[end - size + 1 : end + 1] in pieces and end < len(haystack):
            end += 1
        kept += [text[copied:at], _GONE]
        at = copied = end
    return "".join(kept) + text[copied:]


def _folded(text: str) -> str:
    """Lower case, character by character, so that positions stay what they are."""
    lowered = text.lower().replace("+", " ")  # as forms write a space
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := letter.lower()) == 1 else letter for letter in text).replace(
        "+", " "
    )
