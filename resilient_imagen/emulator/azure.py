"""Azure OpenAI: OpenAI's image API under Azure's v1 path, with deployments in place of models."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from resilient_imagen.emulator.gpt_image import GptImage
from resilient_imagen.emulator.http_messages import json_reply
from resilient_imagen.emulator.vendor_api import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.emulator.http_messages import HttpRequest, Reply
    from resilient_imagen.emulator.vendor_api import ImageSize, ParsedRequest

__all__ = ["Azure"]


def _error(status: int, code: str, message: str, retry_after: float | None = None) -> Reply:
    headers = () if retry_after is None else (("retry-after", f"{retry_after:g}"),)
    return json_reply({"error": {"code": code, "message": message}}, status, headers)


def _no_deployment() -> Reply:
    return _error(
        404,
        "DeploymentNotFound",
        "The API deployment for this resource does not exist. If you created the deployment "
        "within the last 5 minutes, please wait a moment and try again.",
    )


def _bad_key() -> Reply:
    return _error(
        401,
        "401",
        "Access denied due to invalid subscription key or wrong API endpoint. Make sure to "
        "provide a valid key for an active subscription.",
    )


def _no_permission() -> Reply:
    return _error(
        401,
        "PermissionDenied",
        "The principal `00000000-emulated` lacks the required data action "
        "`Microsoft.CognitiveServices/accounts/OpenAI/images/generations/action`.",
    )


def _content_filter() -> Reply:
    error = {
        "code": "content_filter",
        "message": "The response was filtered due to the prompt triggering the content policy.",
        "innererror": {"code": "ResponsibleAIPolicyViolation"},
    }
    return json_reply({"error": error}, 400)


def _rate_limited(retry_after: float | None) -> Reply:
    message = "Requests to this deployment have exceeded the rate limit of its pricing tier."
    return _error(429, "RateLimitReached", message, retry_after)


class Azure(GptImage):
    """The `VendorApi` of Azure OpenAI.

    Args:
        deployments: The model of each deployment; None means that each model has a deployment of
            its name.
    """

    name = "azure"
    prefix = "/openai/v1"
    errors: Mapping[str, Callable[[ParsedRequest, float | None], Reply]] = {
        **GptImage.errors,
        "content_filter": lambda _call, _retry_after: _content_filter(),
        "deployment_not_found": lambda _call, _retry_after: _no_deployment(),
        "key_invalid": lambda _call, _retry_after: _bad_key(),
        "permission_denied": lambda _call, _retry_after: _no_permission(),
        "rate_limited": lambda _call, retry_after: _rate_limited(retry_after),
    }

    def __init__(self, deployments: Mapping[str, str] | None = None) -> None:
        self._deployments = deployments

    def read(self, request: HttpRequest) -> ParsedRequest:
        """Parse a request as far as possible; its model is that of the deployment."""
        call = super().read(request)
        if self._deployments is None:
            return call
        model = self._deployments.get(call.model)
        if model is None:
            return replace(call, problem=call.problem or _no_deployment())
        return replace(call, model=model)

    def check_key(self, request: HttpRequest, accepted: frozenset[str] | None) -> None:
        """Check the key or the access token.

        Raises:
            ApiError: It is missing or not accepted.
        """
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = request.headers.get("api-key", key if scheme.lower() == "bearer" else "")
        if not key or (accepted is not None and key not in accepted):
            raise ApiError(_bad_key())

    def check(self, call: ParsedRequest) -> ImageSize:
        """Validate a request and return the image to render.

        Raises:
            ApiError: Azure does not accept the request.
        """
        if call.problem is None and self._deployments is None and not self.has_model(call.model):
            raise ApiError(_no_deployment())
        return super().check(call)
