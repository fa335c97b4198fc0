"""Options through the drop-in functions, asynchronous and synchronous, with the default client."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

import pytest
from images_samples import encoded
from PIL import Image

import resilient_imagen as ri
from resilient_imagen import sync
from resilient_imagen.emulator import BackgroundEmulator
from resilient_imagen.images.inspect import sniff_mime

Call = Callable[..., Awaitable[ri.ImageDict] | ri.ImageDict]

PHOTO = encoded(Image.new("RGB", (32, 32)), "PNG")
MASK = encoded(Image.new("RGBA", (32, 32)), "PNG")
FUNCTIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("generate_image", ("a fox",), {}),
    ("generate_image_with_references", ("a fox", [PHOTO]), {}),
    ("edit_image", (PHOTO, "more red"), {"mask": MASK}),
]


def call(module: Any, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Call a function of either API inside a block that sets a seed and another format."""
    function: Call = getattr(module, name)
    if module is sync:
        try:
            with sync.call_options(seed=7, output_format="jpeg"):
                return function(*arguments, **options)
        finally:
            sync.reset_default_client()

    async def main() -> Any:
        try:
            with ri.call_options(seed=7, output_format="jpeg"):
                result = function(*arguments, **options)
                return await result if isawaitable(result) else None
        finally:
            await ri.reset_default_client()

    return asyncio.run(main())


@pytest.mark.parametrize("module", [ri, sync], ids=["async", "sync"])
@pytest.mark.parametrize(("name", "arguments", "more"), FUNCTIONS, ids=lambda each: str(each)[:30])
def test_options_reach_the_vendor_by_every_function(
    name: str,
    arguments: tuple[Any, ...],
    more: dict[str, Any],
    module: Any,
    vendors: BackgroundEmulator,
) -> None:
    """Options of the call override those of the block; all images have the requested type."""
    options = {"n": 2, "output_format": "webp", "resolution": "1K", **more}
    result = call(module, name, arguments, options)

    types = [sniff_mime(base64.b64decode(each["image_base64"])) for each in result["images"]]
    assert types == ["image/webp"] * 2
    if "mask" in more:
        (seen,) = vendors.openai.requests
        assert (seen.parameters["n"], seen.parameters["output_format"]) == ("2", "webp")
        assert seen.mask is not None
    else:
        assert [seen.resolution for seen in vendors.google.requests] == ["1K", "1K"]
        assert not vendors.openai.requests


@pytest.mark.parametrize("module", [ri, sync], ids=["async", "sync"])
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"mask": MASK}, TypeError, "unexpected keyword argument 'mask'"),
        ({"operation": "edit"}, TypeError, "unexpected keyword argument 'operation'"),
        ({"n": 11}, ri.InvalidRequestError, "n 11 is not allowed; use a number from 1 to 10"),
    ],
)
def test_wrong_options_are_refused_by_the_functions(
    options: dict[str, Any], error: type[Exception], text: str, module: Any, vendors: Any
) -> None:
    """An unknown name raises TypeError; a value that is not allowed is an invalid request."""
    with pytest.raises(error, match=text):
        call(module, "generate_image", ("a fox",), options)
    assert not vendors.google.requests
