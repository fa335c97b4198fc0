"""Test tools for applications: virtual time, a scripted provider and a recording sink.

Example::

    from resilient_imagen import ImageClient, Settings
    from resilient_imagen.testing import FakeProvider, run_virtual

    async def outage() -> None:
        google = FakeProvider("google").fail(Reason.OVERLOADED, times=3, status=503)
        async with ImageClient(Settings(), providers=[google, FakeProvider("openai")]) as client:
            result = await client.generate("a lighthouse")
        assert result.provider == "openai"

    run_virtual(outage())  # takes no time: retries sleep on the loop's virtual clock
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from resilient_imagen.cost import TokenUsage
from resilient_imagen.errors import ImageGenerationError, provider_failure
from resilient_imagen.providers.base import Endpoint, ProviderImage, ProviderResult
from resilient_imagen.telemetry.recording_sink import RecordingSink
from resilient_imagen.virtualtime import VirtualTimeLoop, run_virtual

if TYPE_CHECKING:
    from resilient_imagen.reasons import Reason
    from resilient_imagen.request import ImageRequest

__all__ = ["FakeProvider", "RecordingSink", "Sent", "VirtualTimeLoop", "run_virtual"]

# 9:16 at 9x16 pixels, so that the default aspect ratio needs no fitting.
TINY_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000090000001008020000004b2ac214"
    "000000174944415478da63d4885ac080033031e006a37283430e0016a20142cf50"
    "72ad0000000049454e44ae426082"
)


@dataclass(frozen=True, slots=True)
class Sent:
    """One request that reached a FakeProvider."""

    at: float
    """Loop time in seconds."""
    model: str
    request: ImageRequest = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Step:
    latency: float
    error: ImageGenerationError | BaseException | None


class FakeProvider:
    """A provider that responds by a script and records the requests sent to it.

    It is also the example of a custom provider, which needs only ``name``, ``generate`` and
    ``aclose``.

    Args:
        name: The provider's name, as in IMAGE_GEN_ROUTES.
        latency: Seconds that a successful request takes, on the loop's clock.
        image: The encoded image to deliver.
    """

    def __init__(self, name: str, *, latency: float = 1.0, image: bytes = TINY_PNG) -> None:
        self.name = name
        self.endpoint = Endpoint(name)
        self.latency = latency
        self.image = image
        self.sent: list[Sent] = []
        self.in_flight: int = 0
        self.max_in_flight: int = 0
        self.closed: bool = False
        self._steps: deque[_Step] = deque()
        self._always: _Step | None = None

    def fail(
        self,
        reason: Reason,
        *,
        times: int | None = None,
        latency: float = 0.1,
        status: int | None = None,
        retry_after: float | None = None,
        account_wide: bool = False,
    ) -> Self:
        """Fail the next ``times`` requests with ``reason``; with None, all until ``heal()``."""
        error = provider_failure(
            reason,
            provider=self.name,
            status=status,
            retry_after=retry_after,
            account_wide=account_wide,
        )
        return self._add(_Step(latency, error), times)

    def hang(self, *, times: int | None = None) -> Self:
        """Never answer the next ``times`` requests; with None, all until ``heal()``."""
        return self._add(_Step(float("inf"), None), times)

    def crash(self, error: BaseException, *, times: int | None = None) -> Self:
        """Raise ``error`` unchanged, like a provider with a bug."""
        return self._add(_Step(0.0, error), times)

    def heal(self) -> Self:
        """Clear the script, so that every further request succeeds."""
        self._steps.clear()
        self._always = None
        return self

    def _add(self, step: _Step, times: int | None) -> Self:
        if times is None:
            self._always = step
        else:
            self._steps.extend([step] * times)
        return self

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        """Return an image or fail, by the script."""
        self.sent.append(Sent(asyncio.get_running_loop().time(), model, request))
        step = self._steps.popleft() if self._steps else self._always or _Step(self.latency, None)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await (
                asyncio.Event().wait()
                if step.latency == float("inf")
                else asyncio.sleep(step.latency)
            )
        finally:
            self.in_flight -= 1
        if step.error is not None:
            raise _fresh(step.error, model)
        usage = TokenUsage(input_tokens=10, output_tokens=100)
        return ProviderResult((ProviderImage(self.image, "image/png"),), model, usage)

    async def aclose(self) -> None:
        """Record that the client closed the provider."""
        self.closed = True


def _fresh(error: BaseException, model: str) -> BaseException:
    """Return a copy of the error: an instance raised twice would collect tracebacks."""
    if not isinstance(error, ImageGenerationError):
        return error
    return provider_failure(
        error.reason,
        provider=error.provider,
        model=model,
        status=error.status,
        retry_after=error.retry_after,
        vendor_message=error.vendor_message,
        account_wide=error.account_wide,
        usage=error.usage,
    )
