"""Google's Gemini image models, through google-genai's async client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.models import google_aspect, google_image_size
from resilient_imagen.providers.google_answers import read_answer
from resilient_imagen.providers.google_failures import failure_of
from resilient_imagen.providers.sdk import SdkProvider, unloadable
from resilient_imagen.tracebacks import without_locals

if TYPE_CHECKING:
    import httpx2

    from resilient_imagen.providers.base import ProviderImage
    from resilient_imagen.providers.body import Body
    from resilient_imagen.providers.complaint import Complaint
    from resilient_imagen.providers.failures import Failure
    from resilient_imagen.providers.wire import Exchange, WireClient
    from resilient_imagen.request import ImageRequest

__all__ = ["GoogleProvider"]

_API_VERSION: Final = "v1"


class GoogleProvider(SdkProvider):
    """Gemini with an API key from AI Studio.

    Nothing of the environment changes where it sends: address, API version and mode are pinned.

    Args:
        api_key: White space around it is not part of it.
        base_url: Where the API is; None means Google's own.
        max_connections: Requests in flight at most.
        connect_timeout: Seconds to connect. Every other limit is the pipeline's.
        transport: Sends instead of the network, for tests.
        name: The provider's name in routes, results and telemetry.

    Raises:
        ConfigurationError: The key could not be sent as a header, or the address is none.
    """

    own_address = "https://generativelanguage.googleapis.com"

    @without_locals
    def __init__(
        self,
        *,
        api_key: str,
        base_url: str | None = None,
        max_connections: int = 4,
        connect_timeout: float = 10.0,
        transport: httpx2.AsyncBaseTransport | None = None,
        name: str = "google",
    ) -> None:
        super().__init__(
            name=name,
            api_key=api_key,
            base_url=base_url,
            max_connections=max_connections,
            connect_timeout=connect_timeout,
            transport=transport,
        )

    def _sdk(self, http: WireClient) -> Any:
        try:
            from google import genai
            from google.genai.client import DebugConfig
        except ImportError as error:
            raise unloadable("google-genai", error) from None
        try:
            return genai.Client(
                api_key=self._api_key,
                vertexai=False,
                debug_config=DebugConfig(client_mode=None),
                http_options=genai.types.HttpOptions(
                    base_url=self.base_url,
                    api_version=_API_VERSION,
                    # An injected client also keeps the SDK from changing to aiohttp.
                    httpx_async_client=http,
                ),
            )
        except ImportError as error:  # GOOGLE_GENAI_HTTP_CLIENT names what is not installed
            raise unloadable("google-genai", error) from None

    async def _ask(self, sdk: Any, request: ImageRequest, model: str, sent: Exchange) -> None:
        from google.genai import types

        references = [
            types.Part.from_bytes(data=sent.stand_in(reference.data), mime_type=reference.mime_type)
            for reference in request.references
        ]
        await sdk.aio.models.generate_content(
            model=model,
            contents=[_prompt(request), *references],
            config=types.GenerateContentConfig(
                response_modalities=["TEXT", "IMAGE"],
                image_config=types.ImageConfig(
                    aspect_ratio=google_aspect(model, request.aspect_ratio),
                    image_size=google_image_size(model, request.resolution),
                ),
                # One call is one request.
                automatic_continuation=False,
                automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            ),
        )

    def _read(self, body: Body, model: str) -> ProviderImage:
        return read_answer(body, model)

    def _failure(self, complaint: Complaint) -> Failure:
        return failure_of(complaint)


def _prompt(request: ImageRequest) -> str:
    """The caller's words, and the orientation, which models follow better when they are told."""
    wanted = request.prompt
    if not request.references:
        wanted = f"Generate a high quality image: {wanted}"
    if request.ratio < 1:
        return f"{wanted} The image should be in portrait orientation (taller than wide)."
    if request.ratio > 1:
        return f"{wanted} The image should be in landscape orientation (wider than tall)."
    return wanted
