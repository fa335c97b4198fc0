"""Ask for an image; get one from the best provider that can serve now, within your time limit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from resilient_imagen.errors import (
    AllProvidersFailedError,
    AuthenticationError,
    CircuitOpenError,
    ConfigurationError,
    ContentBlockedError,
    DeadlineExceededError,
    ImageGenerationError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotFoundError,
    NoImageError,
    PermissionDeniedError,
    ProviderConnectionError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    QuotaExhaustedError,
    RateLimitedError,
    SaturatedError,
)
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from resilient_imagen.api import (
        call_options,
        default_client,
        edit_image,
        generate_image,
        generate_image_with_references,
        reset_default_client,
    )
    from resilient_imagen.client import ImageClient
    from resilient_imagen.providers.base import Provider, ProviderImage
    from resilient_imagen.result import Attempt, ImageResult
    from resilient_imagen.settings import Settings

__all__ = [
    "AllProvidersFailedError",
    "Attempt",
    "AuthenticationError",
    "CircuitOpenError",
    "ConfigurationError",
    "ContentBlockedError",
    "DeadlineExceededError",
    "ImageClient",
    "ImageGenerationError",
    "ImageResult",
    "InvalidRequestError",
    "InvalidResponseError",
    "ModelNotFoundError",
    "NoImageError",
    "PermissionDeniedError",
    "Provider",
    "ProviderConnectionError",
    "ProviderError",
    "ProviderImage",
    "ProviderOverloadedError",
    "ProviderTimeoutError",
    "QuotaExhaustedError",
    "RateLimitedError",
    "Reason",
    "SaturatedError",
    "Settings",
    "__version__",
    "call_options",
    "default_client",
    "edit_image",
    "generate_image",
    "generate_image_with_references",
    "reset_default_client",
]

# Quiet until the application listens: it may print nothing where results go to.
logging.getLogger("resilient_imagen").addHandler(logging.NullHandler())

# Found when first asked for: their modules load asyncio, pydantic-settings, pybreaker or more.
_LAZY = {
    "Attempt": "resilient_imagen.result",
    "ImageClient": "resilient_imagen.client",
    "ImageResult": "resilient_imagen.result",
    "Provider": "resilient_imagen.providers.base",
    "ProviderImage": "resilient_imagen.providers.base",
    "Settings": "resilient_imagen.settings",
    "call_options": "resilient_imagen.api",
    "default_client": "resilient_imagen.api",
    "edit_image": "resilient_imagen.api",
    "generate_image": "resilient_imagen.api",
    "generate_image_with_references": "resilient_imagen.api",
    "reset_default_client": "resilient_imagen.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("resilient-imagen")
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
