"""Runtime control: orders of operators, which change breakers and settings for a limited time."""

from resilient_imagen.control.controller import new_order
from resilient_imagen.control.order import Order, parse_duration

__all__ = ["Order", "new_order", "parse_duration"]
