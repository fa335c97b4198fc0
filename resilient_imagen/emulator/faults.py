"""Faults as values: each function creates one kind of fault, and its name is the kind in JSON.

``FaultPlan`` decides when a fault is applied.
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
    "cut_stream",
    "disconnect",
    "drip",
    "error",
    "error_event",
    "finish",
    "fixed",
    "hang",
    "html",
    "log_normal",
    "no_completed",
    "no_image",
    "overload",
    "quota_exhausted",
    "rate_limited",
    "reset",
    "silent",
    "slow",
    "stall",
    "status",
]

_MAX_SIGMA: Final = 10.0
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"([!-~]([ -~]*[!-~])?)?")
_Z95: Final = 1.6448536269514722
"""Standard deviations from the median to the 95th percentile of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Latency:
    """A latency distribution in seconds: log-normal, or fixed if ``sigma`` is 0.

    Raises:
        ValueError: A number is negative, infinite or unreasonably large.
    """

    median: float
    sigma: float = 0.0
    """Standard deviation of the logarithm, at most 10."""
    maximum: float = math.inf

    def __post_init__(self) -> None:
        """Reject values that are not valid as seconds."""
        if not (
            0 <= self.median < math.inf and 0 <= self.sigma <= _MAX_SIGMA and self.maximum >= 0
        ):
            raise ValueError("a latency must be at least 0, and sigma at most 10")

    def sample(self, rng: random.Random) -> float:
        """Draw a latency in seconds."""
        return min(self.maximum, self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0)))


def fixed(seconds: float) -> Latency:
    """Return a fixed latency."""
    return Latency(seconds)


def log_normal(median: float, p95: float, maximum: float = math.inf) -> Latency:
    """Return a log-normal latency by its median and its 95th percentile in seconds.

    Raises:
        ValueError: ``p95`` is below ``median``, or ``median`` is not above 0.
    """
    if not 0 < median <= p95:
        raise ValueError("a log-normal latency needs 0 < median <= p95")
    return Latency(median, math.log(p95 / median) / _Z95, maximum)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault. The functions of this module create them.

    Raises:
        ValueError: ``share`` is not between 0 and 1.
    """

    name: str
    """The name in records."""
    error: str | None = None
    """Name of the vendor's error to respond with."""
    answer: str | None = None
    """Name of the variant of the vendor's 200 response to respond with."""
    detail: str | None = None
    """A detail of the error or variant: a finish reason, a moderation stage."""
    code: int | None = None
    """HTTP status to respond with."""
    body: Any = None
    """Body for ``code``: a JSON value, str or bytes; None means the vendor's error body."""
    headers: tuple[tuple[str, str], ...] = ()
    retry_after: float | None = None
    """Seconds to wait, sent in the vendor's form."""
    lost: bool = False
    """Whether the connection is closed without a response; reset if ``delivery.abrupt``."""
    hangs: bool = False
    """Whether there is never a response."""
    delivery: Delivery = WHOLE
    after_events: int | None = None
    """Events of an event stream after which the fault strikes. Other responses are not changed."""
    event: str | None = None
    """Name of the vendor's error that an event reports after ``after_events``."""
    ends_stream: bool = False
    """Whether the stream ends properly after ``after_events``, without an image."""
    silent: bool = False
    """Whether an event stream sends nothing, not even headers, until its latency is over."""
    delay: Latency | None = None
    """Time before the fault. None: an error is sent at once, a 200 after the vendor's latency."""
    share: float = 1.0
    """Share of the requests that fail; the others succeed."""

    def __post_init__(self) -> None:
        """Reject a share outside 0 to 1."""
        if not 0 <= self.share <= 1:
            raise ValueError("share must be between 0 and 1")

    @property
    def replaces_answer(self) -> bool:
        """Whether the request is not validated, as in an outage."""
        return self.lost or self.hangs or self.code is not None or self.error is not None

    def after(self, delay: float | Latency) -> Fault:
        """Return the fault with a delay, in seconds."""
        return replace(self, delay=_latency(delay))

    def with_probability(self, share: float) -> Fault:
        """Return the fault for this share of the requests."""
        return replace(self, share=share)


def status(
    code: int,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    retry_after: float | None = None,
) -> Fault:
    """Respond with an HTTP status; without a body, with the vendor's error body.

    ``body`` may be a JSON value, str or bytes. ``retry_after`` is in seconds.

    Raises:
        ValueError: ``code`` is not between 200 and 999, or a header could not be sent.
    """
    if not 200 <= code <= 999:  # noqa: PLR2004 - final statuses; relays use some above 599
        raise ValueError("an HTTP status is a number from 200 to 999")
    for name, value in (headers or {}).items():
        if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
            raise ValueError("a header has a token as its name and printable ASCII as its value")
    pairs = tuple((name.lower(), value) for name, value in (headers or {}).items())
    return Fault(str(code), code=code, body=body, headers=pairs, retry_after=retry_after)


def overload(share: float = 1.0, code: int = 503) -> Fault:
    """Respond to this share of the requests with an overload error."""
    return replace(status(code), name="overload", share=share)


def rate_limited(retry_after: float | None = None) -> Fault:
    """Respond with a per-minute 429; the hint in seconds is in RetryInfo or OpenAI's message."""
    return error("rate_limited", retry_after)


def quota_exhausted(retry_after: float | None = None) -> Fault:
    """Respond with a 429 for an exhausted quota: Gemini's per-day, OpenAI's insufficient_quota."""
    return error("quota_exhausted", retry_after)


def error(name: str, retry_after: float | None = None) -> Fault:
    """Respond with one of the vendor's ``errors``, for example OpenAI's billing_hard_limit."""
    return Fault(name, error=name, retry_after=retry_after)


def blocked(detail: str | None = None) -> Fault:
    """Refuse the prompt.

    ``detail`` is Gemini's blockReason (PROHIBITED_CONTENT) or OpenAI's moderation stage (input).
    """
    return Fault("blocked", answer="blocked", detail=detail)


def no_image() -> Fault:
    """Respond with a 200 without an image: Gemini's finishReason NO_IMAGE, OpenAI's empty data."""
    return Fault("no_image", answer="no_image")


def finish(reason: str) -> Fault:
    """Respond without an image and with this Gemini finishReason, for example IMAGE_SAFETY."""
    return Fault(f"finish {reason}", answer="finish", detail=reason)


def answer(shape: str, detail: str | None = None) -> Fault:
    """Respond with one of the vendor's variants of a 200 (``shapes``)."""
    return Fault(shape, answer=shape, detail=detail)


def bad_json() -> Fault:
    """Respond with a 200 whose JSON is truncated, with a matching Content-Length."""
    return answer("bad_json")


def bad_base64() -> Fault:
    """Respond with a 200 whose image is not valid base64."""
    return answer("bad_base64")


def html() -> Fault:
    """Respond with a 200 and an HTML page, like a proxy or a captive portal."""
    return answer("html")


def hang() -> Fault:
    """Accept the request and never answer."""
    return Fault("hang", hangs=True)


def reset() -> Fault:
    """Reset the connection instead of answering."""
    return Fault("reset", lost=True, delivery=Delivery(abrupt=True))


def disconnect() -> Fault:
    """Close the connection properly instead of answering."""
    return Fault("disconnect", lost=True)


def cut(at: float = 0.5, *, abrupt: bool = False) -> Fault:
    """Close (or reset) the connection after this share of the body.

    Raises:
        ValueError: ``at`` is not from 0 to below 1.
    """
    if not 0 <= at < 1:
        raise ValueError("a body can be cut at a share from 0 to below 1")
    return Fault("cut", delivery=Delivery(cut_at=at, abrupt=abrupt))


def cut_stream(events: int, *, abrupt: bool = False) -> Fault:
    """Close (or reset) the connection after this number of an event stream's events.

    Raises:
        ValueError: ``events`` is negative.
    """
    return _in_stream("cut_stream", events, delivery=Delivery(abrupt=abrupt))


def stall(events: int) -> Fault:
    """Send nothing more after this number of an event stream's events, and never end.

    Raises:
        ValueError: ``events`` is negative.
    """
    return _in_stream("stall", events, delivery=Delivery(stalls=True))


def error_event(name: str, events: int = 0, retry_after: float | None = None) -> Fault:
    """End an event stream with one of the vendor's ``errors`` after this number of its events.

    Raises:
        ValueError: ``events`` is negative.
    """
    return _in_stream(f"error_event {name}", events, event=name, retry_after=retry_after)


def no_completed(events: int = 3) -> Fault:
    """End an event stream properly after at most this number of partial images, without an image.

    Raises:
        ValueError: ``events`` is negative.
    """
    return _in_stream("no_completed", events, ends_stream=True)


def silent(latency: float | Latency) -> Fault:
    """Respond successfully after a latency, and send nothing before, not even a stream's headers.

    An event stream without this fault sends its headers at once.
    """
    return Fault("silent", silent=True, delay=_latency(latency))


def _in_stream(name: str, events: int, **fields: Any) -> Fault:
    if events < 0:
        raise ValueError("the number of events must be at least 0")
    return Fault(name, after_events=events, **fields)


def drip(seconds: float) -> Fault:
    """Send the headers at once, and the body slowly over ``seconds``.

    Raises:
        ValueError: ``seconds`` is not above 0.
    """
    if not 0 < seconds < math.inf:
        raise ValueError("a slow body must take more than 0 seconds")
    return Fault("drip", delivery=Delivery(seconds=seconds))


def slow(latency: float | Latency) -> Fault:
    """Respond successfully after a latency: seconds, or a Latency to draw them from."""
    return Fault("slow", delay=_latency(latency))


def _latency(value: float | Latency) -> Latency:
    return value if isinstance(value, Latency) else Latency(value)


KINDS: Final[Mapping[str, Callable[..., Fault]]] = {
    kind.__name__: kind
    for kind in (
        answer, bad_base64, bad_json, blocked, cut, cut_stream, disconnect, drip, error,
        error_event, finish, hang, html, no_completed, no_image, overload, quota_exhausted,
        rate_limited, reset, silent, slow, stall, status,
    )
}  # fmt: skip
"""All kinds of faults by name, for scripts in JSON."""
