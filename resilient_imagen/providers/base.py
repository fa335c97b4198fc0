"""The contract between the pipeline and a provider: one method, a name and a close."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from resilient_imagen.request import ImageRequest

__all__ = ["PromptHints", "Provider", "ProviderImage", "TokenUsage", "ask", "check_provider"]


class PromptHints(NamedTuple):
    """Text that a provider adds to the caller's prompt."""

    before: str = ""
    after: str = ""

    def added_to(self, prompt: str) -> str:
        """Return the prompt as it is sent."""
        return f"{self.before}{prompt.rstrip() if self.after else prompt}{self.after}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Describe each addition, for ``ImageResult.adjustments``."""
        parts = (part.strip(" .") for part in self)
        return tuple(f'added to the prompt: "{part}"' for part in parts if part)


@dataclass(frozen=True, slots=True)
class ProviderImage:
    """A provider's successful answer.

    Raises:
        TypeError: A field is of another type than it says here.
    """

    data: bytes = field(repr=False)
    """The encoded picture as delivered."""
    mime_type: str
    """Its type. Results say what the bytes are, whatever is claimed here."""
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

    def __post_init__(self) -> None:
        """Refuse what would fail later, in code that the provider's author does not know."""
        for name, (kind, optional) in _FIELDS.items():
            value = getattr(self, name)
            # An exact type first, which is the rule: a bool passes for an int, and is none.
            if type(value) is kind or (value is None and optional):
                continue
            if not isinstance(value, kind) or isinstance(value, bool):
                allowed = f"{kind.__name__} or None" if optional else kind.__name__
                raise TypeError(
                    f"ProviderImage.{name} must be {allowed}, not {type(value).__name__}"
                )


_FIELDS: Final[dict[str, tuple[type, bool]]] = {
    "data": (bytes, False),
    "mime_type": (str, False),
    "model": (str, False),
    "input_tokens": (int, True),
    "output_tokens": (int, True),
    "total_tokens": (int, True),
    "image_tokens_in": (int, True),
    "pictures": (int, False),
    "response_id": (str, True),
    "finish_reason": (str, True),
}
"""Each field's type, and whether it may be None."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
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
    per call, keeps no clock of its own and lets cancellation through. One that adds to the caller's
    prompt says so by a method ``prompt_hints_for(request) -> PromptHints``, which is optional.
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


def check_provider(provider: object) -> None:
    """Check that an object is a provider, as far as that can be seen.

    Raises:
        TypeError: It is none; the text says what is missing.
    """
    kind = provider.__name__ if isinstance(provider, type) else type(provider).__name__
    if isinstance(provider, type):
        raise TypeError(f"provider {kind} is a class; pass an instance of it")
    name = getattr(provider, "name", None)
    if not isinstance(name, str) or not name:
        raise TypeError(f"provider {kind} needs a name, which is a str that is not empty")
    for method in ("generate", "aclose"):
        if not callable(getattr(provider, method, None)):
            raise TypeError(f"provider {kind} ({name}) needs a method {method}")


async def ask(provider: Provider, request: ImageRequest, model: str) -> ProviderImage:
    """Let a provider send one request, and check that it keeps to the protocol.

    Raises:
        TypeError: It did not return a ProviderImage, or is not asynchronous. A bug of its author's:
            it says nothing about the service.
        Exception: Whatever the provider raises.
    """
    running = provider.generate(request, model)
    if not inspect.isawaitable(running):
        raise TypeError(
            f"provider {provider.name}: generate must be an async function; "
            f"it returned {type(running).__name__}"
        )
    answer: object = await running
    if isinstance(answer, ProviderImage):
        return answer
    hint = ""
    if inspect.isawaitable(answer):
        hint = "; is an await missing?"
        if inspect.iscoroutine(answer):
            answer.close()
    raise TypeError(
        f"provider {provider.name}: generate must return a ProviderImage, "
        f"not {type(answer).__name__}{hint}"
    )
