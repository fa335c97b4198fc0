"""What is asked for on the command line or in one row of a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resilient_imagen.errors import InvalidRequestError

if TYPE_CHECKING:
    from resilient_imagen import ImageClient, ImageResult
    from resilient_imagen.call import OnStart

__all__ = ["Order", "is_address"]


_INDEX: Final = re.compile(r"reference_images\[(\d+)\]")
"""How the library names a reference that cannot be used: it may not tell paths, we may."""


@dataclass(frozen=True, slots=True)
class Order:
    """One image to be made."""

    prompt: str
    aspect_ratio: str
    resolution: str
    references: tuple[str, ...] = ()
    """Paths, or http(s) addresses."""
    model: str | None = None
    deadline: float | None = None
    """Seconds."""

    async def place(self, client: ImageClient, on_start: OnStart | None = None) -> ImageResult:
        """Have it made.

        Raises:
            ImageGenerationError: It was not.
        """
        try:
            return await client.generate(
                self.prompt,
                aspect_ratio=self.aspect_ratio,
                resolution=self.resolution,
                references=[_reference(each) for each in self.references],
                model=self.model,
                deadline=self.deadline,
                on_start=on_start,
            )
        except InvalidRequestError as error:
            if error.attempts:
                raise
            raise InvalidRequestError(_INDEX.sub(self._named, str(error))) from None

    def _named(self, index: re.Match[str]) -> str:
        """The reference as the user named it."""
        return self.references[int(index[1])]


def _reference(place: str) -> object:
    return place if is_address(place) else Path(place)


def is_address(place: str) -> bool:
    """Whether a reference is to be fetched rather than read."""
    return place.lower().startswith(("http://", "https://"))
