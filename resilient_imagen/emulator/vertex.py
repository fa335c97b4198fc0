"""Vertex AI: Gemini's generateContent under the paths and credentials of Google Cloud."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.emulator import gemini_errors as errors
from resilient_imagen.emulator.gemini import Gemini
from resilient_imagen.emulator.vendor_api import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.emulator.http_messages import HttpRequest, Reply
    from resilient_imagen.emulator.vendor_api import ParsedRequest

__all__ = ["Vertex"]

_ERROR_INFO: Final = "type.googleapis.com/google.rpc.ErrorInfo"
_LOCATION: Final = re.compile("global|us|eu|[a-z]+-[a-z]+[0-9]+")


def _refused(code: int, message: str, reason: str) -> Reply:
    detail: dict[str, Any] = {
        "@type": _ERROR_INFO,
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "aiplatform.googleapis.com"},
    }
    return errors.error(code, message, details=[detail])


def _expired() -> Reply:
    return _refused(
        401,
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login "
        "cookie or other valid authentication credential.",
        "ACCESS_TOKEN_EXPIRED",
    )


def _no_permission(model: str) -> Reply:
    return _refused(
        403,
        "Permission 'aiplatform.endpoints.predict' denied on resource "
        f"'//aiplatform.googleapis.com/projects/123456789012/locations/global/publishers/google/"
        f"models/{model}' (or it may not exist).",
        "IAM_PERMISSION_DENIED",
    )


def _unknown_location() -> Reply:
    return errors.invalid("Unsupported region for this API; see the list of locations.")


class Vertex(Gemini):
    """The `VendorApi` of Vertex AI, for projects and for express-mode keys."""

    name = "vertex"
    errors: Mapping[str, Callable[[ParsedRequest, float | None], Reply]] = {
        **Gemini.errors,
        "credentials_expired": lambda _call, _retry_after: _expired(),
        "permission_denied": lambda call, _retry_after: _no_permission(call.model),
        "location_unknown": lambda _call, _retry_after: _unknown_location(),
    }
    path = re.compile(
        r"/(?:v1|v1beta1)/(?:projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/)?"
        r"publishers/google/models/(?P<model>[^/:]+):generateContent"
    )

    def check_key(self, request: HttpRequest, accepted: frozenset[str] | None) -> None:
        """Check the access token, or the key of express mode, and the location.

        Raises:
            ApiError: It is missing or not accepted, or there is no such location.
        """
        found = self.path.fullmatch(request.path)
        location = found["location"] if found else None
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = request.headers.get("x-goog-api-key", "") if location is None else token
        if not key or (location is not None and scheme.lower() != "bearer"):
            raise ApiError(_expired())
        if accepted is not None and key not in accepted:
            raise ApiError(_expired() if location is not None else errors.bad_key())
        if location is not None and not _LOCATION.fullmatch(location):
            raise ApiError(_unknown_location())
