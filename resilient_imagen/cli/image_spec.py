"""An image that the command line requests: the same for one prompt and for a row of a file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen._validation import shown_address
from resilient_imagen.errors import InvalidRequestError
from resilient_imagen.request import RequestOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilient_imagen import ImageClient, ImageResult, OnStart
    from resilient_imagen.request import AspectRatio, Resolution

__all__ = ["ImageSpec", "is_file", "is_text", "missing_file"]

_MAX_SHOWN: Final = 300
"""Characters of a path that is shown; a longer string is probably an image in base64."""
_INDEX: Final = re.compile(r"reference_images\[(\d+)\]")
"""The library's name of a reference. It does not state paths, but the command line may."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An image to request."""

    prompt: str
    aspect_ratio: AspectRatio
    resolution: Resolution
    references: tuple[str, ...] = ()
    """Paths, http(s) addresses or data URLs."""
    model: str | None = None
    deadline: float | None = None
    """Seconds."""
    options: RequestOptions = field(default_factory=RequestOptions)
    """The options that are requested."""
    mask: str | None = None
    """Path of a mask: the only reference is edited."""

    async def place(self, client: ImageClient, on_start: OnStart | None = None) -> ImageResult:
        """Request the image; ``on_start`` is called when the first request is about to be sent.

        Raises:
            ImageGenerationError: There is no image.
        """
        references = [each if is_text(each) else Path(each) for each in self.references]
        options: dict[str, Any] = {
            "aspect_ratio": self.aspect_ratio,
            "resolution": self.resolution,
            "model": self.model,
            "deadline": self.deadline,
            "on_start": on_start,
            **self.options,
        }
        try:
            if self.mask is None:
                return await client.generate(self.prompt, references=references, **options)
            mask = Path(self.mask)
            return await client.edit(references[0], self.prompt, mask=mask, **options)
        except InvalidRequestError as error:
            if error.attempts:
                raise
            named = _INDEX.sub(lambda index: _shown(self.references[int(index[1])]), str(error))
            raise InvalidRequestError(named) from None


def missing_file(references: Iterable[str], folder: Path = Path()) -> str | None:
    """Return the first reference to a file that does not exist, as it may be shown, or None."""
    missing = (each for each in references if not is_text(each) and not is_file(folder / each))
    return next(map(_shown, missing), None)


def is_text(reference: str) -> bool:
    """Return whether a reference is an address or a data URL instead of a path."""
    return reference[:8].lower().startswith(("http://", "https://", "data:"))


def is_file(path: str | Path) -> bool:
    """Return whether there is such a file; False for an impossible path."""
    try:
        return Path(path).is_file()
    except OSError:  # a name that is too long, a directory that may not be read
        return False


def _shown(reference: str) -> str:
    """Return a reference as it may be shown: short, without image data, password and query."""
    if reference[:8].lower().startswith("data:"):
        return "a data: URL"
    if is_text(reference):
        try:
            reference = shown_address(reference)
        except ValueError:
            return "a reference"
    short = len(reference) <= _MAX_SHOWN
    return reference if short else f"a string of {len(reference)} characters"
