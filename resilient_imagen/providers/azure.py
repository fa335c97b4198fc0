"""OpenAI's GPT Image models on Azure, through openai's async client and Azure's v1 API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from resilient_imagen.errors import ConfigurationError
from resilient_imagen.providers.access_token import TokenCache
from resilient_imagen.providers.entra_id import entra_tokens
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.providers.sdk import SdkProvider
from resilient_imagen.tracebacks import hide_frame_locals

if TYPE_CHECKING:
    import httpx2

    from resilient_imagen.providers.entra_id import TokenCredential

__all__ = ["AzureProvider", "azure_address"]

_V1: Final = re.compile(r".*/openai/v1", re.IGNORECASE)
_OPENAI: Final = re.compile("/openai$", re.IGNORECASE)


class AzureProvider(OpenAIProvider):
    """GPT Image on Azure OpenAI, with a key or with Entra ID.

    Routes name the deployment and its model, ``azure:my-images=gpt-image-2``, or only the model if
    the deployment has the model's name. Tokens of Entra ID are fetched with the first request, and
    renewed before they expire, in a thread of this provider.

    Args:
        endpoint: The resource's address, such as ``https://my-resource.openai.azure.com``;
            ``/openai/v1/`` is appended if it is missing.
        api_key: White space around it is ignored. None means Entra ID.
        credential: A synchronous credential of azure-identity; None means DefaultAzureCredential,
            which needs the extra ``azure``.
        max_connections: Requests in flight at most.
        connect_timeout: Seconds to connect. The pipeline sets all other time limits.
        transport: Replaces the network, for tests.
        quality: As for ``OpenAIProvider``.
        name: The provider's name in routes, results and telemetry.

    Raises:
        ConfigurationError: The key cannot be sent as a header, the address is not valid, or there
            is no key and azure-identity is not installed.
    """

    telemetry_name = "azure.ai.openai"
    relays_other_vendors = False

    @hide_frame_locals
    def __init__(
        self,
        *,
        endpoint: str,
        api_key: str | None = None,
        credential: TokenCredential | None = None,
        max_connections: int = 4,
        connect_timeout: float = 10.0,
        transport: httpx2.AsyncBaseTransport | None = None,
        quality: str = "high",
        name: str = "azure",
    ) -> None:
        tokens = None
        if api_key is None:
            tokens = TokenCache(entra_tokens(name, credential), f"resilient-imagen-{name}")
        SdkProvider.__init__(
            self,
            name=name,
            api_key=api_key,
            base_url=azure_address(name, endpoint),
            max_connections=max_connections,
            connect_timeout=connect_timeout,
            transport=transport,
            tokens=tokens,
        )
        self._quality = quality


def azure_address(name: str, endpoint: str) -> str:
    """Return the address of the v1 API of a resource.

    Raises:
        ConfigurationError: The address is that of one deployment, or of a dated API version.
    """
    plain = endpoint.strip()
    if "/deployments" in plain or "?" in plain:
        raise ConfigurationError(
            f"{name}: the endpoint must be the resource's address, such as "
            "https://my-resource.openai.azure.com, without a deployment or an API version"
        )
    plain = plain.rstrip("/")
    return f"{plain if _V1.fullmatch(plain) else _OPENAI.sub('', plain) + '/openai/v1'}/"
