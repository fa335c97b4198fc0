"""Prices: the dollars of an image in replays and simulations, by the model table alone.

A recording contains the costs that the table gave when it was recorded.
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Final

from resilient_imagen.cost import usual_image_cost
from resilient_imagen.models import ModelName

if TYPE_CHECKING:
    from resilient_imagen.settings import RouteName, Settings
    from resilient_imagen.tuning.recording import RouteLog

__all__ = ["image_cost", "model_of"]

_RESOLUTION: Final = "2K"
"""The resolution of a request that names none."""


def model_of(route: RouteName, settings: Settings) -> ModelName:
    """Return the model of a route, with its row of IMAGE_GEN_MODELS if it has one there."""
    model = route.model
    return ModelName(model, model.deployment, settings.model_rows.get(model))


def image_cost(route: RouteName, settings: Settings, log: RouteLog | None = None) -> float:
    """Return the usual dollars of an image: as recorded, else by the model table, else 0."""
    if log is not None and (known := [cost for cost in log.cost if not math.isnan(cost)]):
        return median(known)
    return usual_image_cost(model_of(route, settings), _RESOLUTION) or 0.0
