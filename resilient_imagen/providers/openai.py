"""OpenAI's GPT Image models, through openai's async client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilient_imagen.models import clamp_quality, openai_size
from resilient_imagen.providers.openai_errors import failure_of
from resilient_imagen.providers.openai_response import read_answer
from resilient_imagen.providers.sdk import SdkProvider, missing_dependency
from resilient_imagen.tracebacks import hide_frame_locals

if TYPE_CHECKING:
    import httpx2

    from resilient_imagen.providers.base import ProviderImage
    from resilient_imagen.providers.classification import ClassifiedError
    from resilient_imagen.providers.error_body import VendorError
    from resilient_imagen.providers.http import CapturedExchange, CapturingClient
    from resilient_imagen.providers.streaming_body import StreamingJsonBody
    from resilient_imagen.request import ImageRequest, Reference

__all__ = ["OpenAIProvider"]


class OpenAIProvider(SdkProvider):
    """OpenAI's Images API with an API key.

    Args:
        api_key: White space around it is not part of it.
        base_url: Where the API is, its version included; None means OpenAI's own.
        max_connections: Requests in flight at most.
        connect_timeout: Seconds to connect. Every other limit is the pipeline's.
        transport: Sends instead of the network, for tests.
        quality: low, medium, high or auto; xhigh and max count as high on models without them.
        name: The provider's name in routes, results and telemetry.

    Raises:
        ConfigurationError: The key could not be sent as a header, or the address is none.
    """

    default_base_url = "https://api.openai.com/v1"

    @hide_frame_locals
    def __init__(
        self,
        *,
        api_key: str,
        base_url: str | None = None,
        max_connections: int = 4,
        connect_timeout: float = 10.0,
        transport: httpx2.AsyncBaseTransport | None = None,
        quality: str = "high",
        name: str = "openai",
    ) -> None:
        super().__init__(
            name=name,
            api_key=api_key,
            base_url=base_url,
            max_connections=max_connections,
            connect_timeout=connect_timeout,
            transport=transport,
        )
        self._quality = quality

    def _build_sdk(self, http: CapturingClient) -> Any:
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise missing_dependency("openai", error) from None
        client = AsyncOpenAI(
            api_key=self._api_key, base_url=self.base_url, max_retries=0, http_client=http
        )
        # The environment may name an organization and a project that belong to another key, or
        # headers that would take the key's place.
        client.organization = client.project = None
        client._custom_headers = {}  # noqa: SLF001 - with_options(default_headers={}) keeps them
        return client

    async def _send(
        self, sdk: Any, request: ImageRequest, model: str, sent: CapturedExchange
    ) -> None:
        del sent  # uploads are copied by nobody here: the SDK sends files piece by piece
        width, height = openai_size(model, request.aspect_ratio, request.resolution)
        options = {
            "model": model,
            "prompt": request.prompt,
            "n": 1,
            "size": f"{width}x{height}",
            "quality": clamp_quality(model, self._quality),
        }
        if request.references:
            files = [_file(reference) for reference in request.references]
            await sdk.images.edit(image=files, **options)
        else:
            await sdk.images.generate(**options)

    def _parse(self, body: StreamingJsonBody, model: str) -> ProviderImage:
        return read_answer(body, model)

    def _classify(self, complaint: VendorError) -> ClassifiedError:
        return failure_of(complaint)


def _file(reference: Reference) -> tuple[str, bytes, str]:
    """A file to upload: name and type say the same, or the vendor believes the wrong one."""
    extension = reference.mime_type.rpartition("/")[2].replace("jpeg", "jpg")
    return f"reference-{reference.index}.{extension}", reference.data, reference.mime_type
