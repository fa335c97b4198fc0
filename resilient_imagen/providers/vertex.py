"""Google's Gemini image models on Vertex AI, through google-genai's async client."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen._validation import (
    PROMPT_HINTS,
    check_location,
    check_project,
    check_prompt_hints,
    checked,
)
from resilient_imagen.providers.access_token import TokenCache
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.google_credentials import GoogleCredentials
from resilient_imagen.providers.sdk import SdkProvider
from resilient_imagen.redaction import KnownSecret
from resilient_imagen.tracebacks import hide_frame_locals

if TYPE_CHECKING:
    from collections.abc import Collection

    import httpx2
    from google.auth.credentials import Credentials

    from resilient_imagen.providers.access_token import AccessToken
    from resilient_imagen.request import ImageRequest

__all__ = ["VertexProvider", "vertex_address"]

_STAND_IN: Final = "hidden"
"""Replaces the project in the addresses that the SDK, HTTP clients and instrumentations see, as
they log them."""


class VertexProvider(GoogleProvider):
    """Gemini on Vertex AI, with Google Cloud credentials and a project, or with a key.

    Credentials are looked up with the first request, and renewed before they expire, in a thread of
    this provider.

    Args:
        project: The project's ID or number; None means that of the credentials.
        location: ``global``, ``us``, ``eu`` or a region.
        credentials: Credentials of google-auth, or the path of a credentials file; None means
            Application Default Credentials.
        api_key: A key of express mode, which has neither project nor location nor credentials.
        base_url: The address of the API, with or without its version; None means that of the
            location.
        max_connections: Requests in flight at most.
        connect_timeout: Seconds to connect. The pipeline sets all other time limits.
        transport: Replaces the network, for tests.
        name: The provider's name in routes, results and telemetry.
        prompt_hints: As for ``GoogleProvider``.

    Raises:
        ConfigurationError: The key cannot be sent as a header, the address, project or location is
            not valid, or a hint is unknown.
    """

    telemetry_name = "gcp.vertex_ai"
    supported_options = frozenset({"seed", "output_format", "output_compression"})
    default_base_url = "https://aiplatform.googleapis.com"
    default_api_version = "v1beta1"

    @hide_frame_locals
    def __init__(
        self,
        *,
        project: str | None = None,
        location: str = "global",
        credentials: str | os.PathLike[str] | Credentials | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        max_connections: int = 4,
        connect_timeout: float = 10.0,
        transport: httpx2.AsyncBaseTransport | None = None,
        name: str = "vertex",
        prompt_hints: Collection[str] = PROMPT_HINTS,
    ) -> None:
        checked(f"{name}: the project", check_project, project)
        checked(f"{name}: the location", check_location, location)
        tokens = None
        if api_key is None:
            self.default_base_url = vertex_address(location)
            tokens = TokenCache(
                GoogleCredentials(credentials, project).fetch, f"resilient-imagen-{name}"
            )
        file = credentials if isinstance(credentials, (str, os.PathLike)) else ""
        SdkProvider.__init__(
            self,
            name=name,
            api_key=api_key,
            base_url=base_url,
            max_connections=max_connections,
            connect_timeout=connect_timeout,
            transport=transport,
            tokens=tokens,
            account=None if tokens is None else f"{project or os.fspath(file)} {location}",
        )
        self._location = location
        self._prompt_hints = checked(f"{name}: prompt_hints", check_prompt_hints, prompt_hints)
        if project is not None:
            self._secrets.append(KnownSecret(project))

    def _account(self) -> dict[str, Any]:
        if self._tokens is None:
            return {"vertexai": True, "api_key": self._api_key}
        from google.oauth2.credentials import Credentials

        # The real project and token are put into the request just before it is sent.
        return {
            "vertexai": True,
            "project": _STAND_IN,
            "location": self._location,
            "credentials": Credentials(_STAND_IN),  # type: ignore[no-untyped-call]
        }

    def _output_options(self, request: ImageRequest) -> dict[str, Any]:
        """Return the type and the quality of a JPEG. Vertex AI has no WebP, which is made of it."""
        if request.output_format not in {"png", "jpeg"}:
            return {}
        options: dict[str, Any] = {"output_mime_type": f"image/{request.output_format}"}
        if request.output_compression is not None:
            options["output_compression_quality"] = request.output_compression
        return options

    def _authorize(self, token: AccessToken, request: httpx2.Request) -> None:
        super()._authorize(token, request)
        if token.quota_project is not None:
            request.headers["x-goog-user-project"] = token.quota_project
        path = request.url.raw_path.replace(
            f"/projects/{_STAND_IN}/".encode(), f"/projects/{token.project}/".encode(), 1
        )
        request.extensions = {**request.extensions, "target": path}


def vertex_address(location: str) -> str:
    """Return the address of Vertex AI for a location."""
    if location == "global":
        return "https://aiplatform.googleapis.com"
    if location in {"us", "eu"}:
        return f"https://aiplatform.{location}.rep.googleapis.com"
    return f"https://{location}-aiplatform.googleapis.com"
