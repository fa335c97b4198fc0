"""What is asked for on the command line or in one row of a file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resilient_imagen.errors import InvalidRequestError
from resilient_imagen.request import RequestOptions

if TYPE_CHECKING:
    from resilient_imagen import ImageClient, ImageResult
    from resilient_imagen.pipeline.on_start import OnStart
    from resilient_imagen.request import AspectRatio, Resolution

__all__ = ["ImageSpec", "is_file", "is_text", "shown"]

_ADDRESSES: Final = ("http://", "https://")
_DATA: Final = "data:"
_LONGEST: Final = 300
"""Characters of a path that is shown in full; a longer str is probably an image in base64."""
_INDEX: Final = re.compile(r"reference_images\[(\d+)\]")
"""How the library names a reference that cannot be used: it may not tell paths, we may."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One image to be made."""

    prompt: str
    aspect_ratio: AspectRatio
    resolution: Resolution
    references: tuple[str, ...] = ()
    """Paths, http(s) addresses or data URLs."""
    model: str | None = None
    deadline: float | None = None
    """Seconds."""
    options: RequestOptions = field(default_factory=RequestOptions)
    """Options that are requested; those that are not are absent."""
    mask: str | None = None
    """Path of a mask: the only reference is edited."""

    async def place(self, client: ImageClient, on_start: OnStart | None = None) -> ImageResult:
        """Have it made.

        Raises:
            ImageGenerationError: It was not.
        """
        references = [_reference(each) for each in self.references]
        try:
            if self.mask is not None:
                return await client.edit(
                    references[0],
                    self.prompt,
                    aspect_ratio=self.aspect_ratio,
                    resolution=self.resolution,
                    model=self.model,
                    deadline=self.deadline,
                    on_start=on_start,
                    mask=Path(self.mask),
                    **self.options,
                )
            return await client.generate(
                self.prompt,
                aspect_ratio=self.aspect_ratio,
                resolution=self.resolution,
                references=references,
                model=self.model,
                deadline=self.deadline,
                on_start=on_start,
                **self.options,
            )
        except InvalidRequestError as error:
            if error.attempts:
                raise
            raise InvalidRequestError(_INDEX.sub(self._named, str(error))) from None

    def _named(self, index: re.Match[str]) -> str:
        """The reference as the user named it."""
        return shown(self.references[int(index[1])])


def _reference(place: str) -> str | Path:
    return place if is_text(place) else Path(place)


def is_text(place: str) -> bool:
    """Whether a reference is an address or a data URL, and no path."""
    return place[:8].lower().startswith((*_ADDRESSES, _DATA))


def is_file(place: str | Path) -> bool:
    """Whether there is such a file; what can be no path at all is none."""
    try:
        return Path(place).is_file()
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def shown(place: str) -> str:
    """Return a reference as it may be shown: short, and without image data."""
    if place[:8].lower().startswith(_DATA):
        return "a data: URL"
    return place if len(place) <= _LONGEST else f"a text of {len(place)} characters"
