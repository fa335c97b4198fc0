"""The contract between the pipeline and whoever makes pictures: one method, a name and a close."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from resilient_imagen.request import ImageRequest

__all__ = ["Provider", "ProviderImage", "Tokens"]


@dataclass(frozen=True, slots=True)
class ProviderImage:
    """A provider's successful answer."""

    data: bytes = field(repr=False)
    """The encoded picture as delivered."""
    mime_type: str
    """Its true type, sniffed from the bytes."""
    model: str
    """The model that served, as the vendor names it; the requested one when it does not say."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    image_tokens_in: int | None = None
    """Those of the input tokens that were pictures, where the vendor says so (prices differ)."""
    pictures: int = 1
    """Those that the vendor charges for, where it charges by the picture."""
    response_id: str | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What an answer used, with a picture or without one; None where the vendor does not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    image_tokens_in: int | None = None
    pictures: int = 1


@runtime_checkable
class Provider(Protocol):
    """Anything that turns a request into a picture.

    The pipeline owns time, retries, pacing and the breaker: a provider sends exactly one request
    per call, keeps no clock of its own and lets cancellation through.
    """

    @property
    def name(self) -> str:
        """The name used in IMAGE_GEN_ROUTES, in results and in telemetry."""
        ...

    async def generate(self, request: ImageRequest, model: str) -> ProviderImage:
        """Send one request.

        Raises:
            ImageGenerationError: With the ``reason`` that decides what happens next. Reasons
                that only the pipeline can give are translated: ``circuit_open``, ``saturated``
                and ``cancelled`` to ``overloaded``, ``deadline`` to ``timeout``. Anything else is
                taken for a local bug: it casts no vote and surfaces as it is.
        """
        ...

    async def aclose(self) -> None:
        """Close connections. Called once; the provider is not used afterwards."""
        ...
