"""Emulated vendor: its faults, and a record of the requests that it received."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from resilient_imagen.emulator.fault_plan import FaultPlan
from resilient_imagen.emulator.faults import Fault, Latency

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from resilient_imagen.emulator.vendor_api import ParsedRequest, UploadedImage, VendorApi

__all__ = ["ReferenceSeen", "RequestSeen", "Vendor"]

_AT_ONCE = Latency(0.0)


@dataclass(frozen=True, slots=True)
class ReferenceSeen:
    """A reference image that was received."""

    mime_type: str
    """As declared by the sender."""
    size: int
    """In bytes."""


@dataclass(slots=True)
class RequestSeen:
    """The record of one request, updated during the exchange. It does not contain the key."""

    time: float
    """When the request was complete, in seconds of the serving loop's time."""
    operation: str
    """generate or edit."""
    model: str
    prompt: str = field(repr=False)
    aspect_ratio: str | None
    """The requested ratio, if the vendor has that parameter."""
    resolution: str | None
    """The requested imageSize (Gemini) or size (OpenAI)."""
    references: tuple[ReferenceSeen, ...]
    fault: str | None
    """The name of the fault that was applied."""
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The other parameters, by the vendor's names."""
    mask: ReferenceSeen | None = None
    """The mask of an edit."""
    status: int | None = None
    """The HTTP status of the response; None before and without a response."""
    ended: float | None = None
    """When the exchange ended."""
    delivered: bool = False
    """Whether the whole response was sent; False if either side closed the connection before."""


class Vendor:
    """The controls and records of one emulated vendor. Safe to use from any thread."""

    def __init__(
        self, dialect: VendorApi, *, seed: int, keys: Iterable[str] | None, latency: Latency
    ) -> None:
        self.dialect = dialect
        self.name: str = dialect.name
        self.keys: frozenset[str] | None = None if keys is None else frozenset(keys)
        self._rng = random.Random(f"{seed}:{dialect.name}")
        self._plan = FaultPlan(self._rng)
        self._latencies: dict[str | None, Latency] = {None: latency}
        self._requests: list[RequestSeen] = []
        self._in_flight = self._max_in_flight = self._open_connections = 0
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    # Faults

    def fail(self, fault: Fault, *, times: int = 1, model: str | None = None) -> None:
        """Fail the next ``times`` requests (of ``model``, if it is given).

        Raises:
            ValueError: ``times`` is below 1, or this vendor does not have the fault.
        """
        self._know(fault)
        with self._lock:
            self._plan.add_next(fault, times, model)

    def set(self, fault: Fault, *, model: str | None = None) -> None:
        """Fail every request (of ``model``, if it is given) until healed.

        Raises:
            ValueError: This vendor does not have the fault.
        """
        self._know(fault)
        with self._lock:
            self._plan.set_standing(fault, model)

    def schedule(
        self, windows: Iterable[tuple[float, float, Fault]], *, model: str | None = None
    ) -> None:
        """Fail requests within windows (start, end, fault).

        Seconds count from now; before the server has started, from its start.

        Raises:
            ValueError: A window is empty or negative, or this vendor does not have a fault.
        """
        listed = list(windows)
        for _, _, fault in listed:
            self._know(fault)
        with self._lock:
            self._plan.add_windows(listed, model, self._now())

    def heal(self) -> None:
        """Clear all faults. Requests that hang already continue to hang."""
        with self._lock:
            self._plan.clear()

    def set_latency(self, latency: float | Latency, *, model: str | None = None) -> None:
        """Set the latency of successful responses: seconds, or a Latency to draw them from."""
        with self._lock:
            self._latencies[model] = latency if isinstance(latency, Latency) else Latency(latency)

    def _know(self, fault: Fault) -> None:
        for kind, name, known in (
            ("answer", fault.answer, self.dialect.shapes),
            ("error", fault.error, self.dialect.errors),
            ("error", fault.event, self.dialect.errors),
        ):
            if name is not None and name not in known:
                raise ValueError(
                    f"{self.name} has no {kind} {name!r}; it has {', '.join(sorted(known))}"
                )

    # Records

    @property
    def requests(self) -> tuple[RequestSeen, ...]:
        """All requests so far, in the order of arrival."""
        with self._lock:
            return tuple(self._requests)

    @property
    def in_flight(self) -> int:
        """Number of requests in flight."""
        return self._in_flight

    @property
    def max_in_flight(self) -> int:
        """Maximum number of concurrent requests so far."""
        return self._max_in_flight

    @property
    def open_connections(self) -> int:
        """Number of open connections whose last request was for this vendor."""
        return self._open_connections

    def forget(self) -> None:
        """Clear the recorded requests and the maximum of concurrent requests."""
        with self._lock:
            self._requests.clear()
            self._max_in_flight = self._in_flight

    async def until(self, condition: Callable[[Vendor], bool]) -> None:
        """Wait until ``condition(self)`` is true; it is checked after every change."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        entry = (loop, changed)
        with self._lock:
            self._waiting.append(entry)
        try:
            while not condition(self):
                await changed.wait()
                changed.clear()
        finally:
            with self._lock:
                self._waiting.remove(entry)

    # For the application object and the server

    def serve_from(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this loop's clock from now on."""
        with self._lock:
            self._loop = loop
            self._plan.anchor(loop.time())

    def arrived(self, call: ParsedRequest) -> tuple[RequestSeen, Fault | None, float]:
        """Record a request; return its record, the fault to apply and its latency."""
        with self._lock:
            now = self._now() or 0.0
            fault = self._plan.choose(now, call.model)
            seen = RequestSeen(
                now, call.operation, call.model, call.prompt, call.aspect_ratio, call.resolution,
                tuple(map(_reference_seen, call.references)),
                fault.name if fault else None,
                {name: call.parameters[name] for name in call.parameters if name != "prompt"},
                None if call.mask is None else _reference_seen(call.mask),
            )  # fmt: skip
            self._requests.append(seen)
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)
            latency = self._latency(fault, call.model).sample(self._rng)
        self._notify()
        return seen, fault, latency

    def answered(self, seen: RequestSeen, status: int) -> None:
        """Record the status of the response."""
        seen.status = status
        self._notify()

    def ended(self, seen: RequestSeen, *, delivered: bool) -> None:
        """Record the end of an exchange."""
        with self._lock:
            self._in_flight -= 1
            seen.ended = self._now()
            seen.delivered = delivered
        self._notify()

    def connections(self, change: int) -> None:
        """Record that a connection was opened (1) or closed (-1)."""
        with self._lock:
            self._open_connections += change
        self._notify()

    def _latency(self, fault: Fault | None, model: str) -> Latency:
        if fault is not None and fault.delay is not None:
            return fault.delay
        if fault is not None and fault.replaces_answer:
            return _AT_ONCE
        return self._latencies.get(model, self._latencies[None])

    def _now(self) -> float | None:
        if self._loop is not None:
            return self._loop.time()
        with contextlib.suppress(RuntimeError):
            return asyncio.get_running_loop().time()
        return None

    def _notify(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for loop, changed in waiting:
            # The loop of a waiter may have been closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(changed.set)


def _reference_seen(image: UploadedImage) -> ReferenceSeen:
    return ReferenceSeen(image.mime_type, len(image.data))
