"""Error bodies of vendors: find the error in the body, and extract its codes, message and hint.

Forms that vendors and relays really send: the error as an object, in a list, as JSON nested in
JSON strings, followed by an HTML page, as a stream event, as bare text, as a gateway's short code.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json

from resilient_imagen.providers.retry_after import retry_hint
from resilient_imagen.redaction import remove_quoted_secret, remove_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["VendorError"]

_MAX_BODY: Final = 2**18
"""Bytes of an error's body that are parsed."""
_MAX_DEPTH: Final = 6
_DATA_LINE: Final = re.compile(r"^data:\s*(.+)$", re.MULTILINE)
_GATEWAY_CODE: Final = re.compile(r"\s*error code: (\d{3})\d?\s*", re.IGNORECASE)
_ERROR_STATUS: Final = re.compile("[45][0-9]{2}")
_NOT_WORD: Final = re.compile(r"[^a-z0-9]+")

# Parts that a message may quote: addresses, and names in quotes or backticks. An apostrophe between
# letters is not a quote.
_QUOTED: Final = re.compile(r"https?://\S+|`[^`]*`|\"[^\"]*\"|(?<!\w)'[^']*'(?!\w)|“[^“”]*”")
_PREFIX: Final = re.compile(r"(?:(?:error code|http|error|status)\b[\s:\d-]*|\[[^\]]*\]\s*)*")
_MAX_SAID: Final = 4000
"""Characters of a message that rules are matched against."""
_ECHO: Final = 16
"""Shortest part of the prompt, in characters, that is removed as an echo."""
_SHORT_ECHO: Final = 6
"""Shortest prompt, in characters, that is removed where it forms a whole sentence."""
_MAX_TRIES: Final = 20
"""Braces in a string, or stream events, that are tried as the beginning of an error object."""

# The HTTP status for an error code that was sent without a status.
_STATUS_OF: Final[Mapping[str, int]] = {
    "unavailable": 503, "service_unavailable": 503, "overloaded_error": 529,
    "resource_exhausted": 429, "rate_limit_exceeded": 429, "rate_limit_error": 429,
    "unauthenticated": 401, "permission_denied": 403, "deadline_exceeded": 504,
    "invalid_argument": 400, "invalid_request_error": 400, "image_generation_user_error": 400,
    "invalid_api_key": 401, "model_not_found": 404, "server_is_overloaded": 503,
    "service_unavailable_error": 503,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class VendorError:
    """The error that a vendor's response contains."""

    status: int
    """HTTP status. For an error inside a 200: the status that the error contains, else 200."""
    codes: frozenset[str] = frozenset()
    """Error codes, types and reasons of the structured fields, in lower case with underscores."""
    raw_codes: tuple[str, ...] = ()
    """The same codes as the vendor wrote them."""
    param: str = ""
    """OpenAI: the parameter at fault."""
    message: str = field(default="", repr=False)
    normalized_message: str = field(default="", repr=False)
    """The message in lower case without its quoted parts. Rules search no other text."""
    details: tuple[Mapping[str, Any], ...] = ()
    hint: float | None = None
    """Seconds the server asked to wait."""

    @property
    def is_error(self) -> bool:
        """Whether the status or a code shows that this is an error."""
        return self.status >= 400 or bool(self.codes)  # noqa: PLR2004 - HTTP's errors

    @classmethod
    def read(
        cls, status: int, headers: Mapping[str, str], body: bytes, prompt: str = ""
    ) -> VendorError:
        """Parse a response without an image. Never fails, whatever the bytes."""
        text = body[:_MAX_BODY].decode(errors="replace")
        error = _Finder(prompt).innermost(text)
        message = _text(error, "message")
        normalized_message = _normalized(message, prompt)
        details = tuple(_dicts(error.get("details")))
        names = tuple(_names(error, details))
        words = frozenset(_word(name) for name in names)
        gateway = _GATEWAY_CODE.fullmatch(text)
        if status < 300:  # noqa: PLR2004 - an error inside a successful response
            number = _status_within(gateway[1] if gateway else error.get("code"))
            implied = (_STATUS_OF[word] for word in words if word in _STATUS_OF)
            status = number or max(implied, default=status)
        return cls(
            status=status,
            codes=words,
            raw_codes=names,
            param=_text(error, "param"),
            message=message,
            normalized_message=normalized_message,
            details=details,
            hint=retry_hint(headers, details, normalized_message),
        )


def _status_within(code: Any) -> int | None:
    """Return an error's code as an HTTP status; None if it is not an error status."""
    plain = str(code)
    return int(plain) if _ERROR_STATUS.fullmatch(plain) else None


@dataclass(frozen=True, slots=True)
class _Finder:
    """Finds the error object in a body. JSON that is an echo of the prompt is ignored."""

    prompt: str

    def innermost(self, value: Any, depth: int = 0) -> dict[str, Any]:
        """Return the error object inside lists, JSON strings and enclosing objects."""
        if depth > _MAX_DEPTH:
            return {}
        if isinstance(value, str):
            document = self._document(value)
            return {"message": value} if document is None else self.innermost(document, depth + 1)
        if isinstance(value, list):
            return self.innermost(next(_dicts(value), {}), depth + 1)
        return self._within(value, depth)

    def _within(self, value: dict[str, Any], depth: int) -> dict[str, Any]:
        """Return an object merged with the error objects in its fields."""
        error = value.get("error") or value.get("detail")
        if isinstance(error, dict | list):
            return {**value, **self.innermost(error, depth + 1)}
        if isinstance(error, str) and error is value.get("error"):
            inner = self.innermost(error, depth + 1)
            stated = {"message": _message(value)} if _message(value) else {}
            # A word is a code; a string with digits is a number, an id or image data.
            code = {} if any(letter.isdigit() for letter in str(error)) else {"type": error}
            return {**value, **code, **inner, **stated}
        return {**value, **self.innermost(_message(value), depth + 1)}

    def _document(self, text: str) -> Any:
        """Return the JSON value in a string, ignoring text around it; None if there is no JSON."""
        plain = text.strip().lstrip("\ufeff")
        if len(self.prompt) >= _ECHO and "{" in self.prompt:
            plain = remove_secret(plain, self.prompt)
        if plain[:1] in {"{", "[", '"'} and (document := _json(plain)) is not None:
            return document
        for line in islice(_DATA_LINE.finditer(plain), _MAX_TRIES):  # an event stream
            event = _json(line[1])
            if isinstance(event, dict) and ("error" in event or "message" in event):
                return event
        return _embedded(plain)


def _message(value: dict[str, Any]) -> str:
    found = (_text(value, name) for name in ("message", "detail", "msg", "error_message"))
    return next(filter(None, found), "")


def _embedded(text: str) -> dict[str, Any] | None:
    """Find an error object inside other text, such as a relay's message or an HTML page."""
    at = -1
    for _ in range(_MAX_TRIES):
        at = text.find("{", at + 1)
        if at < 0:
            return None
        found = _json(text[at:])
        if found is None:
            found = _python(text[at:])
        if isinstance(found, dict) and isinstance(found.get("error"), dict):
            return found
    return None


def _python(text: str) -> Any:
    """Parse an error object printed as a Python literal, as relays do with ``str(error)``."""
    end = text.rfind("}")
    if end > _MAX_SAID:
        return None
    try:
        return ast.literal_eval(text[: end + 1])
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _json(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        pass
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    return found if isinstance(found, str) else ""


def _names(error: dict[str, Any], details: tuple[Mapping[str, Any], ...]) -> Iterator[str]:
    inner = [error.get("innererror"), error.get("inner_error")]
    for holder in (error, *details, *_dicts(error.get("errors")), *_dicts(inner)):
        for name in ("code", "type", "status", "reason"):
            word = _text(holder, name)
            if word and len(word) <= 64:  # noqa: PLR2004 - longer than any code
                yield word


def _word(name: str) -> str:
    return _NOT_WORD.sub("_", name.lower()).strip("_")


def _normalized(message: str, prompt: str) -> str:
    """Return the message in lower case, without quoted parts and echoes of the prompt."""
    message = message[:_MAX_SAID]
    if len(prompt) >= _ECHO:
        message = remove_quoted_secret(message, prompt)
    elif len(prompt) >= _SHORT_ECHO:
        alone = rf"(?:^|(?<=[.!?:] )){re.escape(prompt)}(?=$|[.!?,;])"
        message = re.sub(alone, "", message, flags=re.IGNORECASE | re.MULTILINE)
    plain = _QUOTED.sub(" ", message.lower())
    lines = (" ".join(line.split()) for line in plain.splitlines())
    return "\n".join(_PREFIX.sub("", line, count=1) for line in lines)
