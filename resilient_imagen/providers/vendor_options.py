"""Checks of ``vendor_options``: which vendors they name, and which fields they must not replace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from resilient_imagen.request import ImageRequest

__all__ = ["check_protected_fields", "check_vendors"]

_KEYS: Final = frozenset({"key", "apikey"})
"""Names, normalized, under which vendors take an API key."""


def check_vendors(request: ImageRequest, known: Collection[str]) -> None:
    """Check that the options are for known vendors.

    Raises:
        InvalidRequestError: They are not; the text names the first unknown vendor.
    """
    for vendor in sorted(set(request.vendor_options or ()).difference(known)):
        raise InvalidRequestError(
            f"vendor_options names the vendor {vendor[:40]!r}; use {', '.join(sorted(known))}"
        )


def check_protected_fields(request: ImageRequest, vendor: str, protected: Collection[str]) -> None:
    """Check that the options for a vendor do not replace fields that the library sends.

    Args:
        request: The request with the options.
        vendor: The vendor.
        protected: The vendor's names; those inside an object follow a dot.

    Raises:
        InvalidRequestError: They replace a protected field or a key; the text names the first one.
    """
    refused = {_normalized(name) for name in protected} | _KEYS
    for given in sorted(_names(request.vendor_fields(vendor))):
        if _normalized(given) in refused:
            raise InvalidRequestError(f"vendor_options for {vendor} must not contain {given}")


def _names(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of fields, and of fields in objects."""
    for name, value in fields.items():
        yield name
        if isinstance(value, dict):
            for inner in value:
                yield f"{name}.{inner}"


def _normalized(name: str) -> str:
    """Return a name without case and underscores: Google's SDK ignores them in names."""
    return name.replace("_", "").lower()
