"""OpenAI's GPT Image models, through openai's async client."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit

from resilient_imagen.cost import priced_usage
from resilient_imagen.errors import provider_failure
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.models import clamp_quality, deployment_of, get_model, openai_size
from resilient_imagen.providers.base import ProviderImage, ProviderResult
from resilient_imagen.providers.openai_errors import failure_of
from resilient_imagen.providers.openai_response import LinkedImagesError, read_answer
from resilient_imagen.providers.openai_stream import ImageStream
from resilient_imagen.providers.sdk import SdkProvider, missing_dependency
from resilient_imagen.reasons import Reason
from resilient_imagen.tracebacks import hide_frame_locals

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2

    from resilient_imagen.providers.classification import ClassifiedError
    from resilient_imagen.providers.error_body import VendorError
    from resilient_imagen.providers.http import CapturedExchange, CapturingClient
    from resilient_imagen.providers.sdk import SdkFailure
    from resilient_imagen.providers.streaming_body import StreamingJsonBody
    from resilient_imagen.request import ImageRequest, Reference

__all__ = ["OpenAIProvider"]

_SDK_HEADERS: Final = re.compile("accept|content-type|user-agent|x-stainless-.*", re.IGNORECASE)
"""Headers that the SDK sets by itself."""


class OpenAIProvider(SdkProvider):
    """OpenAI's Images API with an API key.

    Args:
        api_key: White space around it is ignored.
        base_url: The address of the API, with its version; None means OpenAI's.
        max_connections: Requests in flight at most.
        connect_timeout: Seconds to connect. The pipeline sets all other time limits.
        transport: Replaces the network, for tests.
        quality: The quality of requests that do not set it: low, medium, high or auto;
            xhigh and max become high on models without them.
        name: The provider's name in routes, results and telemetry.

    Raises:
        ConfigurationError: The key cannot be sent as a header, or the address is not valid.
    """

    vendor = "openai"
    telemetry_name = "openai"
    supported_options = frozenset(
        {
            "n",
            "mask",
            "background",
            "output_format",
            "output_compression",
            "quality",
            "partial_images",
        }
    )
    protected_fields = frozenset(
        {"image", "image[]", "mask", "model", "n", "partial_images", "prompt", "stream"}
    )
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

    def _build_sdk(self, http: CapturingClient, null: httpx2.Client) -> Any:
        del null  # AsyncOpenAI has no synchronous client
        try:
            from openai import AsyncOpenAI, Omit
        except ImportError as error:
            raise missing_dependency("openai", error) from None

        class Client(AsyncOpenAI):
            """The SDK's client without the headers that the environment adds.

            OPENAI_ORG_ID and OPENAI_PROJECT_ID may belong to another key, and
            OPENAI_CUSTOM_HEADERS may replace ours.
            """

            @property
            def default_headers(self) -> dict[str, str | Omit]:
                """Return the headers that the SDK sets by itself."""
                headers = super().default_headers
                return {name: headers[name] for name in headers if _SDK_HEADERS.fullmatch(name)}

        # The SDK appends the path to the base URL as a str, so a query in it must go separately.
        address, _, query = self.base_url.partition("#")[0].partition("?")
        return Client(
            api_key=self._api_key or "hidden",  # in place of an access token
            base_url=address,
            default_query=dict(parse_qsl(query, keep_blank_values=True)),
            max_retries=0,
            http_client=http,
        )

    def _warm_up_sdk(self, sdk: Any, null: httpx2.Client) -> None:
        del sdk
        from openai import OpenAI

        client = OpenAI(api_key="warm-up", base_url="http://warm-up", http_client=null)
        client.images.generate(model="warm-up", prompt="warm-up")
        client.images.edit(model="warm-up", prompt="warm-up", image=[("0.png", b"", "image/png")])

    async def _send(
        self, sdk: Any, request: ImageRequest, model: str, sent: CapturedExchange
    ) -> None:
        options = self._parameters(request, model)
        if request.partial_images and "partial_images" in self._options_of(model):
            sent.events = ImageStream(request, model)
            options.update(stream=True, partial_images=request.partial_images)
        # The SDK sends files piece by piece and does not copy them. The stream that it returns is
        # empty, as `sent` has captured the events.
        if request.references:
            files = [_file(reference) for reference in request.references]
            await sdk.images.edit(image=files, **options)
        else:
            await sdk.images.generate(**options)

    def _parameters(self, request: ImageRequest, model: str) -> dict[str, Any]:
        """Return the parameters of both endpoints that the model has."""
        supported = self._options_of(model)
        options: dict[str, Any] = {"model": deployment_of(model), "prompt": request.prompt}
        if "n" in supported:
            options["n"] = request.n or 1
        if (size := openai_size(model, request.aspect_ratio, request.resolution)) is not None:
            options["size"] = f"{size[0]}x{size[1]}"
        quality = clamp_quality(model, request.quality or self._quality)
        if quality is not None:
            options["quality"] = quality
        for name in ("background", "output_format", "output_compression"):
            if (value := getattr(request, name)) is not None and name in supported:
                options[name] = value
        row = get_model(self.vendor, model)
        if row is not None and row.response_format is not None:
            options["response_format"] = row.response_format
        if extra := request.vendor_fields(self.vendor):
            options["extra_body"] = extra
        if request.mask is not None and "mask" in supported:
            options["mask"] = ("mask.png", request.mask.data, "image/png")
        return options

    def _adjustments(self, request: ImageRequest, model: str) -> tuple[str, ...]:
        wanted = request.quality
        sent = None if wanted is None else clamp_quality(model, wanted)
        if sent is None or sent == wanted:
            return ()
        return (f"{model} does not support quality {wanted}; {sent} was used",)

    def _parse(self, body: StreamingJsonBody, request: ImageRequest, model: str) -> ProviderResult:
        row = get_model(self.vendor, model)
        other_vendor = row is not None and row.options is not None
        return read_answer(body, model, request.n or 1, allow_links=other_vendor)

    async def _answer(
        self,
        response: httpx2.Response,
        size: int,
        parse: Callable[[], ProviderResult],
        request: ImageRequest,
        model: str,
        sdk_failure: SdkFailure | None,
    ) -> ProviderResult:
        try:
            return await super()._answer(response, size, parse, request, model, sdk_failure)
        except LinkedImagesError as error:
            links = error
        failure = ""
        try:
            images = tuple([await self._downloaded(url) for url in links.urls])
        except UnusableImageError as error:
            failure = str(error)  # without the address
        else:
            usage = replace(links.tokens, billed_images=len(images))
            return ProviderResult(images, model, usage)
        raise provider_failure(
            Reason.CONNECTION,
            provider=self.name,
            model=model,
            status=response.status_code,
            vendor_message=f"the image at the address in the response {failure}",
            usage=priced_usage(
                links.tokens,
                provider=self.name,
                model=model,
                resolution=request.resolution,
                delivered=False,
            ),
        )

    async def _downloaded(self, url: str) -> ProviderImage:
        """Load an image that the service returned by its address; without the account's key.

        Only the service's own host may be in a private network, or speak plain http.

        Raises:
            UnusableImageError: It cannot be loaded.
        """
        from resilient_imagen.images.inspect import sniff_mime
        from resilient_imagen.images.limits import ImageLimits
        from resilient_imagen.references.fetch import Fetcher

        own = urlsplit(url).netloc == urlsplit(self.base_url).netloc
        data = await Fetcher(ImageLimits(allow_private=own, allow_http=own)).fetch(url)
        mime_type = sniff_mime(data)
        if mime_type is None:
            raise UnusableImageError("is not an image")
        return ProviderImage(data, mime_type)

    def _classify(self, error: VendorError) -> ClassifiedError:
        return failure_of(error)


def _file(reference: Reference) -> tuple[str, bytes, str]:
    """Return a file to upload. The vendor derives the type from the file's name."""
    extension = reference.mime_type.rpartition("/")[2].replace("jpeg", "jpg")
    return f"reference-{reference.index}.{extension}", reference.data, reference.mime_type
