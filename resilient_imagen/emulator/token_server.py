"""Token server: access tokens for Vertex AI and Azure, with the same faults as the image APIs.

``POST /token`` answers google-auth's service accounts. ``GET /msi/token`` is App Service's identity
endpoint, which azure-identity's managed identity asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.emulator.http_messages import json_reply
from resilient_imagen.emulator.response_variants import common_shapes
from resilient_imagen.emulator.vendor_api import ImageSize, ParsedRequest, ResponseVariant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.emulator.http_messages import HttpRequest, Reply
    from resilient_imagen.emulator.vendor_api import Answer

__all__ = ["GOOGLE_PATH", "IDENTITY_PATH", "TokenServer"]

GOOGLE_PATH: Final = "/token"
IDENTITY_PATH: Final = "/msi/token"
_WITHOUT_IMAGE: Final = ("bad_json", "body_empty", "body_list", "body_null", "body_object", "html")
_CODES: Final = {
    400: "invalid_grant",
    401: "unauthorized_client",
    403: "access_denied",
    503: "temporarily_unavailable",
}


def _error(status: int, retry_after: float | None = None) -> Reply:
    headers = () if retry_after is None else (("retry-after", f"{retry_after:g}"),)
    body = {"error": _CODES.get(status, "server_error"), "error_description": "emulated failure"}
    return json_reply(body, status, headers)


class TokenServer:
    """The `VendorApi` of token servers. The operation of its requests is ``token``.

    Args:
        lifetime: Seconds until a token expires.
    """

    name = "tokens"
    errors: Mapping[str, Callable[[ParsedRequest, float | None], Reply]] = {
        "invalid_grant": lambda _call, _retry_after: _error(400),
        "access_denied": lambda _call, _retry_after: _error(403),
    }

    def __init__(self, lifetime: float = 3600.0) -> None:
        self.lifetime = lifetime
        shapes = common_shapes(self._token)
        self.shapes: Mapping[str, ResponseVariant] = {
            **{name: shapes[name] for name in _WITHOUT_IMAGE},
            "good": ResponseVariant(self._token, pictures=0),
        }

    def matches(self, path: str) -> bool:
        """Return whether the path is a token endpoint."""
        return path in {GOOGLE_PATH, IDENTITY_PATH}

    def read(self, request: HttpRequest) -> ParsedRequest:
        """Parse a request; its model is the path."""
        return ParsedRequest("token", request.path)

    def check_key(self, request: HttpRequest, accepted: frozenset[str] | None) -> None:
        """Accept every request: signatures are not checked."""

    def check(self, call: ParsedRequest) -> ImageSize:
        """Accept every request."""
        del call
        return ImageSize(1, 1, "image/png")

    def error(self, code: int, retry_after: float | None = None) -> Reply:
        """Return the error for a status."""
        return _error(code, retry_after)

    def _token(self, answer: Answer) -> dict[str, Any]:
        token = {"access_token": f"emulated-token-{answer.id}", "token_type": "Bearer"}
        if answer.call.model == IDENTITY_PATH:
            return {**token, "expires_on": str(int(answer.created + self.lifetime))}
        return {**token, "expires_in": int(self.lifetime)}
