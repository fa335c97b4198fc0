"""Google's Gemini image models, through google-genai's async client."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from resilient_imagen._validation import PROMPT_HINTS, check_prompt_hints, checked
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.models import deployment_of, google_aspect, google_image_size
from resilient_imagen.providers.base import PromptHints
from resilient_imagen.providers.google_errors import failure_of
from resilient_imagen.providers.google_response import read_answer
from resilient_imagen.providers.http import JsonWriter
from resilient_imagen.providers.sdk import SdkProvider, missing_dependency
from resilient_imagen.tracebacks import hide_frame_locals

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import httpx2

    from resilient_imagen.providers.base import ProviderResult
    from resilient_imagen.providers.classification import ClassifiedError
    from resilient_imagen.providers.error_body import VendorError
    from resilient_imagen.providers.http import BodyPart, CapturedExchange, CapturingClient
    from resilient_imagen.providers.streaming_body import StreamingJsonBody
    from resilient_imagen.request import ImageRequest, Reference

__all__ = ["PROMPT_HINTS", "GoogleProvider", "split_version"]

_VERSIONED: Final = re.compile(r"(https?://[^?#]+?)/+(v\d+(?:(?:alpha|beta)\d*)?)/*", re.IGNORECASE)
_QUALITY: Final = "Generate a high quality image: "
_PORTRAIT: Final = "The image should be in portrait orientation (taller than wide)."
_LANDSCAPE: Final = "The image should be in landscape orientation (wider than tall)."
_SENTENCE_ENDS: Final = tuple(".!?\N{HORIZONTAL ELLIPSIS}\u3002\uff01\uff1f\u0964")
_CLOSING: Final = (
    " \t\r\n\"'`)]}\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}\xbb\u300d"
)


class GoogleProvider(SdkProvider):
    """Gemini with an API key from AI Studio.

    The environment does not change where requests go: address, API version and mode are fixed.

    Args:
        api_key: White space around it is ignored.
        base_url: The address of the API, with or without its version; None means Google's.
        max_connections: Requests in flight at most.
        connect_timeout: Seconds to connect. The pipeline sets all other time limits.
        transport: Replaces the network, for tests.
        name: The provider's name in routes, results and telemetry.
        prompt_hints: The text that is added to prompts: ``quality`` (only without references),
            ``orientation``, both, or none.

    Raises:
        ConfigurationError: The key cannot be sent as a header, the address is not valid, or a hint
            is unknown.
    """

    vendor = "google"
    telemetry_name = "gcp.gemini"
    supported_options = frozenset({"seed"})
    protected_fields = frozenset({"contents", "model", "generationConfig.candidateCount"})
    default_base_url = "https://generativelanguage.googleapis.com"
    default_api_version: ClassVar[str] = "v1"
    """The version of the API, where the address does not end in one."""

    @hide_frame_locals
    def __init__(
        self,
        *,
        api_key: str,
        base_url: str | None = None,
        max_connections: int = 4,
        connect_timeout: float = 10.0,
        transport: httpx2.AsyncBaseTransport | None = None,
        name: str = "google",
        prompt_hints: Collection[str] = PROMPT_HINTS,
    ) -> None:
        super().__init__(
            name=name,
            api_key=api_key,
            base_url=base_url,
            max_connections=max_connections,
            connect_timeout=connect_timeout,
            transport=transport,
        )
        self._prompt_hints = checked(f"{name}: prompt_hints", check_prompt_hints, prompt_hints)

    def prompt_hints_for(self, request: ImageRequest) -> PromptHints:
        """Return the text that is added to the caller's prompt.

        Models follow the orientation better if the prompt states it, too.
        """
        quality = "quality" in self._prompt_hints and not request.references
        orientation = ""
        if "orientation" in self._prompt_hints and request.ratio != 1:
            ended = request.prompt.rstrip(_CLOSING).endswith(_SENTENCE_ENDS)
            wanted = _PORTRAIT if request.ratio < 1 else _LANDSCAPE
            orientation = f"{' ' if ended else '. '}{wanted}"
        return PromptHints(_QUALITY if quality else "", orientation)

    def _build_sdk(self, http: CapturingClient, null: httpx2.Client) -> Any:
        try:
            from google import genai
            from google.genai.client import DebugConfig
        except ImportError as error:
            raise missing_dependency("google-genai", error) from None
        base_url, api_version = split_version(self.base_url)
        try:
            return genai.Client(
                **self._account(),
                debug_config=DebugConfig(client_mode=None),
                http_options=genai.types.HttpOptions(
                    base_url=base_url,
                    api_version=api_version or self.default_api_version,
                    httpx_client=null,
                    # An injected client also keeps the SDK from changing to aiohttp.
                    httpx_async_client=http,
                ),
            )
        except ImportError:
            # The SDK imports httpx if the variable requests it, before it checks for the client.
            raise ConfigurationError(
                f"{self.name}: GOOGLE_GENAI_HTTP_CLIENT names a package that is not installed; "
                "unset it, as requests are sent by httpx2 in any case"
            ) from None

    def _account(self) -> dict[str, Any]:
        """Return the SDK's arguments that select mode and account."""
        return {"api_key": self._api_key, "vertexai": False}

    def _warm_up_sdk(self, sdk: Any, null: httpx2.Client) -> None:
        del null  # the SDK's synchronous client uses it already
        config = _config("warm-up", "1:1", "1K")
        sdk.models.generate_content(model="warm-up", contents="warm-up", config=config)

    async def _send(
        self, sdk: Any, request: ImageRequest, model: str, sent: CapturedExchange
    ) -> None:
        from google.genai import types

        config = _config(
            model, request.aspect_ratio, request.resolution, **self._output_options(request)
        )
        config.seed = request.seed
        if extra := request.vendor_fields(self.vendor):
            config.http_options = types.HttpOptions(extra_body=extra)
        if request.references:
            sent.rewrite = partial(_with_references, request.references)
        await sdk.aio.models.generate_content(
            model=deployment_of(model),
            contents=self.prompt_hints_for(request).added_to(request.prompt),
            config=config,
        )

    def _output_options(self, request: ImageRequest) -> dict[str, Any]:
        """Return the fields of the SDK's ImageConfig for the encoding; the Gemini API has none."""
        del request
        return {}

    def _parse(self, body: StreamingJsonBody, request: ImageRequest, model: str) -> ProviderResult:
        del request
        return read_answer(body, model)

    def _classify(self, error: VendorError) -> ClassifiedError:
        return failure_of(error)


def split_version(base_url: str) -> tuple[str, str | None]:
    """Split the API's version off an address; many relays and mock servers state it."""
    found = _VERSIONED.fullmatch(base_url)
    return (base_url, None) if found is None else (found[1], found[2])


def _config(model: str, aspect_ratio: str, resolution: str, **output: Any) -> Any:
    from google.genai import types

    return types.GenerateContentConfig(
        response_modalities=["TEXT", "IMAGE"],
        image_config=types.ImageConfig(
            aspect_ratio=google_aspect(model, aspect_ratio),
            image_size=google_image_size(model, resolution),
            **output,
        ),
        # The SDK must send one request per call.
        automatic_continuation=False,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )


def _with_references(references: Sequence[Reference], body: bytes) -> list[BodyPart]:
    """Add reference images to the body of a generateContent request that has only the prompt.

    The SDK would encode all of them at once, and block the event loop meanwhile.
    """
    document = json.loads(body)
    writer = JsonWriter()
    document["contents"][-1]["parts"] += [
        {"inlineData": {"mimeType": each.mime_type, "data": writer.upload(each.data)}}
        for each in references
    ]
    return writer.parts(document)
