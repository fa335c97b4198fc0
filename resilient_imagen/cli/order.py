"""What is asked for on the command line or in one row of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_imagen import ImageClient, ImageResult
    from resilient_imagen.call import OnStart

__all__ = ["Order", "is_address"]


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
        return await client.generate(
            self.prompt,
            aspect_ratio=self.aspect_ratio,
            resolution=self.resolution,
            references=[_reference(each) for each in self.references],
            model=self.model,
            deadline=self.deadline,
            on_start=on_start,
        )


def _reference(place: str) -> object:
    return place if is_address(place) else Path(place)


def is_address(place: str) -> bool:
    """Whether a reference is to be fetched rather than read."""
    return place.lower().startswith(("http://", "https://"))
