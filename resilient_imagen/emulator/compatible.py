"""Compatible vendor: a service with OpenAI's image API that rejects the parameters of GPT Image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.emulator import gpt_image_errors as errors
from resilient_imagen.emulator.gpt_image import GptImage
from resilient_imagen.emulator.vendor_api import ApiError, ImageSize, ResponseVariant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_imagen.emulator.vendor_api import Answer, ParsedRequest

__all__ = ["Compatible"]

_PARAMETERS: Final = frozenset({"model", "n", "prompt", "response_format", "user"})
_WIDTH, _HEIGHT = 1024, 768


def _good(answer: Answer) -> dict[str, Any]:
    data = [{"b64_json": picture.base64} for picture in answer.pictures]
    return {"created": answer.created, "data": data}


class Compatible(GptImage):
    """The `VendorApi` of a strict vendor, such as xAI: no sizes, qualities, references or edits.

    It has every model, and all of its images have one size.
    """

    name = "compatible"
    prefix = "/compatible/v1"
    shapes: Mapping[str, ResponseVariant] = {**GptImage.shapes, "good": ResponseVariant(_good)}

    def matches(self, path: str) -> bool:
        """Return whether the path is the only endpoint."""
        return path == f"{self.prefix}/images/generations"

    def check(self, call: ParsedRequest) -> ImageSize:
        """Validate a request and return the image to render.

        Raises:
            ApiError: The vendor does not accept the request.
        """
        if call.problem is not None:
            raise ApiError(call.problem)
        for name in sorted(call.parameters.keys() - _PARAMETERS):
            raise ApiError(errors.unknown_parameter(name))
        for name in ("model", "prompt"):
            if not getattr(call, name):
                raise ApiError(errors.missing(name))
        if call.parameters.get("response_format", "b64_json") != "b64_json":
            value = call.parameters["response_format"]
            raise ApiError(errors.invalid_value("response_format", value, ("b64_json",)))
        count = call.parameters.get("n", 1)
        if count not in range(1, 11):
            raise ApiError(errors.invalid_value("n", count, ("1", "10")))
        return ImageSize(_WIDTH, _HEIGHT, "image/jpeg", "auto", count)
