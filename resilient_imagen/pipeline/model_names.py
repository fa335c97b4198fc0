"""Names of models: the name to request, the model's vendor, the successor of a retired model."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from resilient_imagen import models

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.providers.base import Endpoint
    from resilient_imagen.settings import RouteName, Settings

__all__ = ["ModelNames"]


class ModelNames:
    """Resolves the names of models that settings and callers use.

    Args:
        settings: Their IMAGE_GEN_MODELS adds rows to the model table.
        warn: Called with a code and a message about a retired or unknown model.
    """

    def __init__(self, settings: Settings, warn: Callable[[str, str], None]) -> None:
        self._rows = settings.model_rows
        self._warn = warn

    def named(self, model: str) -> models.ModelName:
        """Return a model's name with its row of IMAGE_GEN_MODELS, if it has one there."""
        return models.ModelName(model, models.deployment_of(model), self._rows.get(model))

    def resolve(self, route: RouteName, endpoint: Endpoint) -> tuple[models.ModelName, str | None]:
        """Return the model to request, and its vendor if the endpoint is sure not to have it."""
        model = self.named(route.model)
        if endpoint.vendor not in models.VENDORS:
            return model, None
        if models.deployment_of(model) == model:  # else the name says nothing about the server's
            model = self.successor_of(model)
        vendor = models.vendor_of(model)
        if vendor not in {None, endpoint.vendor} and not endpoint.any_vendor:
            return model, vendor
        self.warn_if_unknown(model)
        return model, None

    def successor_of(self, model: models.ModelName) -> models.ModelName:
        """Return the successor of a retired model, with a warning; of any other, the model."""
        successor = models.successor(model, datetime.now(UTC).date())
        if successor is None:
            return model
        self._warn("retired_model", f"model {model} was retired; using {successor}")
        return self.named(successor)

    def warn_if_unknown(self, model: str) -> None:
        """Warn of a model that is not in the model table."""
        if models.find_model(model) is None:
            self._warn("unknown_model", f"model {model} is not in the model table; passed on as is")
