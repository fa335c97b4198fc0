"""Parse the responses of OpenAI's image API."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.cost import TokenUsage
from resilient_imagen.providers.base import ProviderImage, ProviderResult
from resilient_imagen.providers.openai_errors import failure_of
from resilient_imagen.providers.response_parsing import (
    ResponseError,
    attach_usage,
    decode_image,
    get_count,
    get_list,
    get_text,
    parse_json,
    usage_of,
)
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from resilient_imagen.providers.streaming_body import StreamingJsonBody

__all__ = ["LinkedImagesError", "read_answer", "read_tokens"]

_LINKS: Final = ("https://", "http://")


class LinkedImagesError(Exception):
    """The service returned addresses in place of the images.

    Args:
        urls: The addresses, at least one.
        tokens: The token counts of the response.
    """

    def __init__(self, urls: Sequence[str], tokens: TokenUsage) -> None:
        super().__init__("the images are to be downloaded")
        self.urls = urls
        self.tokens = tokens


def read_answer(
    body: StreamingJsonBody, model: str, n: int = 1, *, allow_links: bool = False
) -> ProviderResult:
    """Return the images in the body of a 200.

    Args:
        body: The complete body.
        model: The requested model; responses do not name the model.
        n: Number of images requested. If the body has more, the last ``n`` are returned, because
            relays put drafts first.
        allow_links: Whether the response may have addresses of images; a data URL it may always
            have, as it contains the image.

    Raises:
        LinkedImagesError: The response has only addresses, and may have them.
        ResponseError: The body has no image, or only images that cannot be delivered.
    """
    answer = parse_json(body, failure_of)
    tokens = read_tokens(answer)
    with attach_usage(tokens):
        images = get_list(answer, "data")
        encoded = [get_text(image, "b64_json") or get_text(image, "url") for image in images]
        links = [each for each in encoded if each.startswith(_LINKS)]
        if allow_links and links and len(links) == len(images):
            raise LinkedImagesError(links[-n:], tokens)
        if delivered := [each for each in encoded if each][-n:]:
            return ProviderResult(
                _decoded(delivered, body),
                model=model,
                usage=replace(tokens, billed_images=len(delivered)),
            )
        promised = "data" in answer or "created" in answer
        raise ResponseError.of(Reason.NO_IMAGE if promised else Reason.INVALID_RESPONSE)


def _decoded(encoded: list[str], body: StreamingJsonBody) -> tuple[ProviderImage, ...]:
    """Decode the images, without those that cannot be decoded if others can."""
    images: list[ProviderImage] = []
    failure: ResponseError | None = None
    for each in encoded:
        try:
            images.append(ProviderImage(*decode_image(each, body)))
        except ResponseError as error:
            failure = error
    if failure is not None and not images:
        raise failure
    return tuple(images)


def read_tokens(answer: Mapping[str, Any]) -> TokenUsage:
    """Return the token counts of a response, or of the event that completes an image."""
    usage = usage_of(answer, "usage")
    return TokenUsage(
        input_tokens=get_count(usage, "input_tokens", "prompt_tokens"),
        output_tokens=get_count(usage, "output_tokens", "completion_tokens"),
        total_tokens=get_count(usage, "total_tokens"),
        input_image_tokens=get_count(usage_of(usage, "input_tokens_details"), "image_tokens"),
    )
