"""Provider protocol: send one request, return a result or raise a classified error."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from resilient_imagen._validation import check_types
from resilient_imagen.cost import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_imagen.request import ImageRequest

__all__ = [
    "Endpoint",
    "PromptHints",
    "Provider",
    "ProviderImage",
    "ProviderResult",
    "account_id",
    "check_provider",
    "endpoint_of",
    "send_request",
    "supports",
]


@dataclass(frozen=True, slots=True)
class ProviderImage:
    """One image as the provider delivered it.

    Raises:
        TypeError: A field has another type than it states here.
    """

    data: bytes = field(repr=False)
    """The encoded image."""
    mime_type: str
    """The MIME type as the provider states it. Results state the type found in the bytes."""

    def __post_init__(self) -> None:
        """Check the types here, where the provider's author sees the mistake."""
        check_types(self, {"data": bytes, "mime_type": str})


@dataclass(frozen=True, slots=True)
class ProviderResult:
    """A provider's successful answer: at least one image.

    Raises:
        TypeError: A field has another type than it states here, or ``images`` is empty.
    """

    images: tuple[ProviderImage, ...]
    """The images in the vendor's order. A result may have fewer than ``ImageRequest.n``."""
    model: str
    """The model that served, as the vendor names it; the requested model if it names none."""
    usage: TokenUsage = field(default_factory=TokenUsage)
    adjustments: tuple[str, ...] = ()
    """A sentence for each further change."""
    response_id: str | None = None
    finish_reason: str | None = None
    ignored_options: tuple[str, ...] = ()
    """Names of the request's options that the provider does not support. The pipeline converts to
    ``output_format`` and ``output_compression``, and reports the others."""

    def __post_init__(self) -> None:
        """Check the types here, where the provider's author sees the mistake."""
        check_types(self, _RESULT_TYPES, optional=frozenset({"response_id", "finish_reason"}))
        if not self.images or not all(isinstance(each, ProviderImage) for each in self.images):
            raise TypeError("ProviderResult.images must hold at least one ProviderImage")
        for name in ("adjustments", "ignored_options"):
            if not all(isinstance(each, str) for each in getattr(self, name)):
                raise TypeError(f"ProviderResult.{name} must hold only str")


_RESULT_TYPES: Final[Mapping[str, type]] = {
    "images": tuple,
    "model": str,
    "usage": TokenUsage,
    "adjustments": tuple,
    "response_id": str,
    "finish_reason": str,
    "ignored_options": tuple,
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Identity of the account and the address that a provider sends requests to."""

    vendor: str
    """The vendor whose API the provider uses, ``google`` or ``openai``: it selects the rows of
    the model table. The table has no rows for any other value."""
    base_url: str | None = None
    """The address of the API, for ``server.address`` in spans; None if unknown."""
    account: str = ""
    """An identifier that is equal in all processes that use the same account (see ``account_id``)
    and does not reveal the key. Processes share rate limit and breaker by account."""
    any_vendor: bool = False
    """Whether models of other vendors are served, too, as by a relay."""
    telemetry_name: str | None = None
    """The value of ``gen_ai.provider.name`` by OpenTelemetry's conventions, such as
    ``gcp.vertex_ai``; None means the provider's name."""


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


@runtime_checkable
class Provider(Protocol):
    """A service that turns a request into an image.

    The pipeline owns timeouts, retries, pacing and the breaker: a provider sends exactly one
    request per call, sets no timeout and lets cancellation through.

    Four members are optional:

    - ``endpoint``: an ``Endpoint``, which must not change. Without it the provider's name counts as
      the vendor.
    - ``async def warm_up(self) -> None``: does the set-up work of the first request in advance.
    - ``supported_options``: the names of the request's options that ``generate`` supports. Only
      with ``n`` in it is a request for several images sent once; other providers get one request
      for each image. Only with ``mask`` in it is the provider asked first for an edit with a mask.
    - ``prompt_hints_for(request) -> PromptHints``: the text that ``generate`` adds to the prompt.
    """

    @property
    def name(self) -> str:
        """The name used in IMAGE_GEN_ROUTES, in results and in telemetry."""
        ...

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        """Send one request.

        Raises:
            ImageGenerationError: Its ``reason`` determines the next step of the call. Reasons of
                the pipeline are translated: ``circuit_open``, ``saturated`` and ``cancelled`` to
                ``overloaded``, ``deadline`` to ``timeout``. Any other exception counts as a local
                bug: it casts no vote and is raised unchanged.
        """
        ...

    async def aclose(self) -> None:
        """Close connections. Called once; the provider is not used afterwards."""
        ...


def check_provider(provider: object) -> None:
    """Check that an object has the members of a provider.

    Raises:
        TypeError: It is not a provider; the text names the missing member.
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
    endpoint = getattr(provider, "endpoint", None)
    if endpoint is not None and not isinstance(endpoint, Endpoint):
        raise TypeError(
            f"provider {kind} ({name}): endpoint must be an Endpoint, not {type(endpoint).__name__}"
        )


def endpoint_of(provider: Provider) -> Endpoint:
    """Return the provider's endpoint, by default one whose vendor is the provider's name."""
    endpoint = getattr(provider, "endpoint", None)
    return endpoint if isinstance(endpoint, Endpoint) else Endpoint(provider.name)


def supports(provider: Provider, option: str) -> bool:
    """Return whether the provider states that it supports an option of the request."""
    return option in getattr(provider, "supported_options", ())


def account_id(api_key: str, base_url: str) -> str:
    """Return an identifier that is equal for equal keys and addresses, and reveals neither."""
    identity = json.dumps([api_key, base_url.rstrip("/")]).encode()
    return blake2b(identity, digest_size=4, key=b"resilient_imagen").hexdigest()


async def send_request(provider: Provider, request: ImageRequest, model: str) -> ProviderResult:
    """Let a provider send one request, and check the type of its result.

    Raises:
        TypeError: ``generate`` is not asynchronous or did not return a ProviderResult. This is a
            bug in the provider, not a failure of the service.
        Exception: Any exception that the provider raises.
    """
    running = provider.generate(request, model)
    if not inspect.isawaitable(running):
        raise TypeError(
            f"provider {provider.name}: generate must be an async function; "
            f"it returned {type(running).__name__}"
        )
    answer: object = await running
    if isinstance(answer, ProviderResult):
        return answer
    hint = ""
    if inspect.isawaitable(answer):
        hint = "; is an await missing?"
        if inspect.iscoroutine(answer):
            answer.close()
    raise TypeError(
        f"provider {provider.name}: generate must return a ProviderResult, "
        f"not {type(answer).__name__}{hint}"
    )
