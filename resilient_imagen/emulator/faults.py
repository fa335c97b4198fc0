"""What can go wrong, as values: each function here is one fault, and its name is its JSON kind.

A fault says nothing about when it strikes; that is the plan's business (``plan.py``).
"""

from __future__ import annotations

import math
import random  # noqa: TC003 - pydantic reads these signatures at run time
import re
from collections.abc import (  # noqa: TC003 - as above
    Callable,
    Mapping,
)
from dataclasses import dataclass, replace
from typing import Any, Final

from resilient_imagen.emulator.http_messages import WHOLE, Delivery

__all__ = [
    "KINDS",
    "Fault",
    "Latency",
    "answer",
    "bad_base64",
    "bad_json",
    "blocked",
    "cut",
    "disconnect",
    "drip",
    "error",
    "finish",
    "fixed",
    "hang",
    "html",
    "log_normal",
    "no_image",
    "overload",
    "quota_exhausted",
    "rate_limited",
    "reset",
    "slow",
    "status",
]

_MAX_SIGMA: Final = 10.0
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"([!-~]([ -~]*[!-~])?)?")
_Z95: Final = 1.6448536269514722
"""How many standard deviations above the median the 95th percentile of a normal lies."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long an answer takes, in seconds: log-normal, or fixed when ``sigma`` is 0.

    Raises:
        ValueError: A number is negative, not finite or absurd.
    """

    median: float
    sigma: float = 0.0
    """Standard deviation of the logarithm, at most 10."""
    maximum: float = math.inf

    def __post_init__(self) -> None:
        """Refuse what could not be slept."""
        if not (
            0 <= self.median < math.inf and 0 <= self.sigma <= _MAX_SIGMA and self.maximum >= 0
        ):
            raise ValueError("a latency is at least 0, and its spread is a believable one")

    def sample(self, rng: random.Random) -> float:
        """One latency, in seconds."""
        return min(self.maximum, self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0)))


def fixed(seconds: float) -> Latency:
    """Every answer takes so many seconds."""
    return Latency(seconds)


def log_normal(median: float, p95: float, maximum: float = math.inf) -> Latency:
    """Half of the answers take at most ``median`` seconds, 95 of 100 at most ``p95``.

    Raises:
        ValueError: ``p95`` is below ``median``, or ``median`` is not above 0.
    """
    if not 0 < median <= p95:
        raise ValueError("a log-normal latency needs 0 < median <= p95")
    return Latency(median, math.log(p95 / median) / _Z95, maximum)


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to go wrong. Made by the functions of this module.

    Raises:
        ValueError: ``share`` is not between 0 and 1.
    """

    name: str
    """What records call it."""
    error: str | None = None
    """The vendor's error of this name is answered instead of a picture."""
    answer: str | None = None
    """The vendor's 200 answer of this shape is given instead of a good one."""
    detail: str | None = None
    """What the error or the shape is about: a finish reason, a moderation stage."""
    code: int | None = None
    """This HTTP status is answered instead of a picture."""
    body: Any = None
    """Its body: a JSON value, text or bytes; None for the vendor's own words."""
    headers: tuple[tuple[str, str], ...] = ()
    retry_after: float | None = None
    """Seconds to wait, said in the vendor's way."""
    lost: bool = False
    """No answer: the connection is closed or, if ``delivery.abrupt``, reset."""
    hangs: bool = False
    """No answer, ever."""
    delivery: Delivery = WHOLE
    delay: Latency | None = None
    """Time before it shows. None: an error comes at once, a 200 after the vendor's latency."""
    share: float = 1.0
    """Share of the requests it strikes; the others are served."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.share <= 1:
            raise ValueError("share must be between 0 and 1")

    @property
    def replaces_answer(self) -> bool:
        """Whether the request is never looked at: an outage comes before any check."""
        return self.lost or self.hangs or self.code is not None or self.error is not None

    def after(self, delay: float | Latency) -> Fault:
        """The same fault, shown only after ``delay`` seconds."""
        return replace(self, delay=_latency(delay))

    def with_probability(self, share: float) -> Fault:
        """The same fault for this share of the requests."""
        return replace(self, share=share)


def status(
    code: int,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    retry_after: float | None = None,
) -> Fault:
    """Answer with this HTTP status; without a body in the vendor's own words.

    ``body`` may be a JSON value, text or bytes. ``retry_after`` is in seconds.

    Raises:
        ValueError: ``code`` is not between 200 and 999, or a header could not be sent.
    """
    if not 200 <= code <= 999:  # noqa: PLR2004 - final statuses; relays invent some above 599
        raise ValueError("an HTTP status is a number from 200 to 999")
    for name, value in (headers or {}).items():
        if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
            raise ValueError("a header has a token as its name and printable ASCII as its value")
    pairs = tuple((name.lower(), value) for name, value in (headers or {}).items())
    return Fault(str(code), code=code, body=body, headers=pairs, retry_after=retry_after)


def overload(share: float = 1.0, code: int = 503) -> Fault:
    """Answer this share of the requests with "overloaded", and serve the others."""
    return replace(status(code), name="overload", share=share)


def rate_limited(retry_after: float | None = None) -> Fault:
    """429 for this minute; Gemini hints in RetryInfo, OpenAI in its text. Seconds."""
    return error("rate_limited", retry_after)


def quota_exhausted(retry_after: float | None = None) -> Fault:
    """429 for today, or for ever: Gemini's per-day violation, OpenAI's insufficient_quota."""
    return error("quota_exhausted", retry_after)


def error(name: str, retry_after: float | None = None) -> Fault:
    """One of the vendor's ``errors`` by name, for example OpenAI's billing_hard_limit."""
    return Fault(name, error=name, retry_after=retry_after)


def blocked(detail: str | None = None) -> Fault:
    """The prompt is refused.

    ``detail`` is Gemini's blockReason (PROHIBITED_CONTENT) or OpenAI's moderation stage (input).
    """
    return Fault("blocked", answer="blocked", detail=detail)


def no_image() -> Fault:
    """A 200 that holds no image: Gemini's finishReason NO_IMAGE, OpenAI's empty data."""
    return Fault("no_image", answer="no_image")


def finish(reason: str) -> Fault:
    """Gemini ends without a picture for this finishReason, for example IMAGE_SAFETY."""
    return Fault(f"finish {reason}", answer="finish", detail=reason)


def answer(shape: str, detail: str | None = None) -> Fault:
    """A 200 of an unusual shape: one of the vendor's ``shapes``."""
    return Fault(shape, answer=shape, detail=detail)


def bad_json() -> Fault:
    """A 200 whose JSON breaks off in the middle, although all promised bytes arrive."""
    return answer("bad_json")


def bad_base64() -> Fault:
    """A 200 whose picture is no base64."""
    return answer("bad_base64")


def html() -> Fault:
    """A 200 with a web page, as a proxy or a captive portal gives."""
    return answer("html")


def hang() -> Fault:
    """Accept the request and never answer."""
    return Fault("hang", hangs=True)


def reset() -> Fault:
    """Reset the connection instead of answering."""
    return Fault("reset", lost=True, delivery=Delivery(abrupt=True))


def disconnect() -> Fault:
    """Close the connection, in good order, instead of answering."""
    return Fault("disconnect", lost=True)


def cut(at: float = 0.5, *, abrupt: bool = False) -> Fault:
    """Close (or reset) the connection after this share of the body.

    Raises:
        ValueError: ``at`` is not from 0 to below 1.
    """
    if not 0 <= at < 1:
        raise ValueError("a body can be cut at a share from 0 to below 1")
    return Fault("cut", delivery=Delivery(cut_at=at, abrupt=abrupt))


def drip(seconds: float) -> Fault:
    """The headers come at once, the body trickles over so many seconds.

    Raises:
        ValueError: ``seconds`` is not above 0.
    """
    if not 0 < seconds < math.inf:
        raise ValueError("a body trickles over more than 0 seconds")
    return Fault("drip", delivery=Delivery(seconds=seconds))


def slow(latency: float | Latency) -> Fault:
    """A good answer, late: seconds, or a Latency to draw them from."""
    return Fault("slow", delay=_latency(latency))


def _latency(value: float | Latency) -> Latency:
    return value if isinstance(value, Latency) else Latency(value)


KINDS: Final[Mapping[str, Callable[..., Fault]]] = {
    kind.__name__: kind
    for kind in (
        answer, bad_base64, bad_json, blocked, cut, disconnect, drip, error, finish, hang, html,
        no_image, overload, quota_exhausted, rate_limited, reset, slow, status,
    )
}  # fmt: skip
"""Every kind of fault by name, for scripts in JSON."""
