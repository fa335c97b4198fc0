"""Resilient image generation: one call returns an image from the best provider available now.

Retries, fallback, pacing, circuit breakers and deadlines are part of the call.
"""

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
    from resilient_imagen.cost import TokenUsage
    from resilient_imagen.health import Health
    from resilient_imagen.pipeline.on_start import OnStart
    from resilient_imagen.pipeline.progress import OnProgress, Progress
    from resilient_imagen.providers.base import (
        Endpoint,
        Provider,
        ProviderImage,
        ProviderResult,
    )
    from resilient_imagen.request import (
        AspectRatio,
        EditOptions,
        ImageOptions,
        ImageRequest,
        PartialImage,
        Reference,
        Resolution,
    )
    from resilient_imagen.result import (
        Attempt,
        DroppedReference,
        ImageDict,
        ImageInput,
        ImageResult,
        Usage,
    )
    from resilient_imagen.settings import Settings, SettingsArguments
    from resilient_imagen.snapshots import Snapshot
    from resilient_imagen.stream import ProgressStream

__all__ = [
    "AllProvidersFailedError",
    "AspectRatio",
    "Attempt",
    "AuthenticationError",
    "CircuitOpenError",
    "ConfigurationError",
    "ContentBlockedError",
    "DeadlineExceededError",
    "DroppedReference",
    "EditOptions",
    "Endpoint",
    "Health",
    "ImageClient",
    "ImageDict",
    "ImageGenerationError",
    "ImageInput",
    "ImageOptions",
    "ImageRequest",
    "ImageResult",
    "InvalidRequestError",
    "InvalidResponseError",
    "ModelNotFoundError",
    "NoImageError",
    "OnProgress",
    "OnStart",
    "PartialImage",
    "PermissionDeniedError",
    "Progress",
    "ProgressStream",
    "Provider",
    "ProviderConnectionError",
    "ProviderError",
    "ProviderImage",
    "ProviderOverloadedError",
    "ProviderResult",
    "ProviderTimeoutError",
    "QuotaExhaustedError",
    "RateLimitedError",
    "Reason",
    "Reference",
    "Resolution",
    "SaturatedError",
    "Settings",
    "SettingsArguments",
    "Snapshot",
    "TokenUsage",
    "Usage",
    "__version__",
    "call_options",
    "default_client",
    "edit_image",
    "generate_image",
    "generate_image_with_references",
    "reset_default_client",
]

# Without a handler, logging would print warnings to the standard error of an application.
logging.getLogger("resilient_imagen").addHandler(logging.NullHandler())

# Imported on first use: their modules load asyncio, pydantic-settings, pybreaker and more.
_LAZY = {
    "AspectRatio": "resilient_imagen.request",
    "Attempt": "resilient_imagen.result",
    "DroppedReference": "resilient_imagen.result",
    "EditOptions": "resilient_imagen.request",
    "Endpoint": "resilient_imagen.providers.base",
    "Health": "resilient_imagen.health",
    "ImageClient": "resilient_imagen.client",
    "ImageDict": "resilient_imagen.result",
    "ImageInput": "resilient_imagen.result",
    "ImageOptions": "resilient_imagen.request",
    "ImageRequest": "resilient_imagen.request",
    "ImageResult": "resilient_imagen.result",
    "OnProgress": "resilient_imagen.pipeline.progress",
    "OnStart": "resilient_imagen.pipeline.on_start",
    "PartialImage": "resilient_imagen.request",
    "Progress": "resilient_imagen.pipeline.progress",
    "ProgressStream": "resilient_imagen.stream",
    "Provider": "resilient_imagen.providers.base",
    "ProviderImage": "resilient_imagen.providers.base",
    "ProviderResult": "resilient_imagen.providers.base",
    "Reference": "resilient_imagen.request",
    "Resolution": "resilient_imagen.request",
    "Settings": "resilient_imagen.settings",
    "SettingsArguments": "resilient_imagen.settings",
    "Snapshot": "resilient_imagen.snapshots",
    "TokenUsage": "resilient_imagen.cost",
    "Usage": "resilient_imagen.result",
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
    if name == "dashboard":  # a module, which needs an extra
        from importlib import import_module

        return import_module("resilient_imagen.dashboard")
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
