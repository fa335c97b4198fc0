"""Reference loading: read images in every supported form, check and normalize them."""

from __future__ import annotations

import asyncio
import math
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resilient_imagen.errors import InvalidRequestError
from resilient_imagen.images.base64_codec import decode_base64_async
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.images.normalize import normalize
from resilient_imagen.images.worker_pool import Pool, off_loop, pool_for, shares_of_one_call
from resilient_imagen.references.shrink import shrink_to_total
from resilient_imagen.request import Reference
from resilient_imagen.result import DroppedReference, ImageResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from resilient_imagen.images.limits import ImageLimits
    from resilient_imagen.references.fetch import Fetcher

__all__ = ["LoadedReferences", "load_references"]

_ADDRESS: Final = ("http://", "https://")
_HEAD: Final = 64
"""Characters of a str, which may be megabytes of base64, that are searched for an address."""
_LONGEST_NAME: Final = 4096
"""Characters up to which a str that is no image may be a file's path or a storage URL."""
_BASE64_SLACK: Final = 1.1
"""Factor by which base64 may be longer than necessary, for line breaks."""
_BASE64_PREFIX: Final = 1024
"""Maximum characters of a data URL before its data."""


@dataclass(frozen=True, slots=True)
class LoadedReferences:
    """A caller's reference images, sorted into those that can be sent and those that cannot."""

    references: tuple[Reference, ...]
    """The usable references in the caller's order; each has its index."""
    dropped: tuple[DroppedReference, ...]
    notes: tuple[str, ...]
    """A sentence for each reference that was normalized or made smaller."""


async def load_references(
    raw: Sequence[object],
    *,
    limits: ImageLimits,
    fetch: Fetcher | None,
    strict: bool,
    most: int | None = None,
    max_bytes: int | None = None,
    seconds: float = math.inf,
    called: str = "reference_images[{}]",
) -> LoadedReferences:
    """Load, check and normalize reference images concurrently, off the event loop.

    An item may be: a dict with ``image_base64`` (such as a result dict) or, if that is empty,
    ``image_url`` (an address, or a dict with one as ``url``); an ImageResult; bytes, bytearray or
    memoryview of an encoded image; an os.PathLike to a file; a str that is an http(s) address, a
    data URL, or base64. A str is never used as a file's path, even if the file exists, because it
    may be untrusted. A claimed MIME type is ignored; the type is sniffed from the bytes.

    Args:
        raw: The caller's items.
        limits: Bounds for each image.
        fetch: Loads addresses; None drops items that are addresses.
        strict: Raise for an item that cannot be used, instead of dropping it.
        most: Maximum of references to send. Further items are listed as dropped, without being
            read, and so are items after the first limits.max_tried.
        max_bytes: Maximum bytes of one reference; a larger one is made smaller.
        seconds: Time for reading all addresses and files; items not read by then are dropped. It is
            at most limits.fetch_seconds.
        called: Format of an item's name in errors, with its index.

    Raises:
        InvalidRequestError: ``raw`` is not a sequence of items; or, if strict, an item cannot be
            used; the text has its name and the cause, but no content.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes, bytearray, memoryview)):
        raise InvalidRequestError(
            f"reference_images must be a list of images, not {type(raw).__name__}"
        )
    loader = _Loader(limits, fetch, max_bytes, seconds)
    tried = min(len(raw), limits.max_tried)
    wanted = len(raw) if most is None else most
    usable: list[_Loaded] = []
    dropped: list[DroppedReference] = []
    with shares_of_one_call():
        while (seen := len(usable) + len(dropped)) < tried and len(usable) < wanted:
            batch = range(seen, min(tried, seen + wanted - len(usable)))
            for each in await asyncio.gather(*(loader.load(index, raw[index]) for index in batch)):
                (usable if isinstance(each, _Loaded) else dropped).append(each)  # type: ignore[arg-type]
    if strict and dropped:
        raise InvalidRequestError(f"{called.format(dropped[0]['index'])} {dropped[0]['why']}")
    unread = f"was not read: no more than {wanted} can be sent"
    if len(usable) < wanted:
        unread = f"was not read: no more than {tried} are tried for one image"
    dropped += [DroppedReference(index=index, why=unread) for index in range(seen, len(raw))]
    notes = tuple(note for each in usable for note in each.notes)
    return LoadedReferences(tuple(each.reference for each in usable), tuple(dropped), notes)


@dataclass(frozen=True, slots=True)
class _Loaded:
    reference: Reference
    notes: tuple[str, ...]


class _Loader:
    """Loads the items of one call, with its limits, deadline and concurrency."""

    def __init__(
        self, limits: ImageLimits, fetch: Fetcher | None, max_bytes: int | None, seconds: float
    ) -> None:
        self._limits = limits
        self._fetch = fetch
        self._max_bytes = min(limits.max_reference_bytes, max_bytes or limits.max_reference_bytes)
        self._until = asyncio.get_running_loop().time() + min(seconds, limits.fetch_seconds)
        self._breaker = asyncio.Semaphore(limits.max_loading)

    async def load(self, index: int, item: object) -> _Loaded | DroppedReference:
        """Load an item as a reference, or return why it was dropped."""
        async with self._breaker:
            try:
                data = await self._bytes_of(item)
                self._limits.check_bytes(len(data))
                return await self._normalized(index, data)
            except UnusableImageError as error:
                return DroppedReference(index=index, why=str(error))

    async def _normalized(self, index: int, data: bytes) -> _Loaded:
        bounds = {
            "max_pixels": self._limits.max_pixels,
            "max_read_pixels": self._limits.max_read_pixels,
        }
        image = await off_loop(partial(normalize, data, **bounds), pool=pool_for(data))
        notes = [] if image.note is None else [f"reference {index} normalized: {image.note}"]
        reference = Reference(image.data, image.mime_type, index)
        # A normalized image may be larger: a small GIF or AVIF becomes a PNG.
        most = self._max_bytes
        (reference,), more = await shrink_to_total([reference], most, limits=self._limits)
        if len(reference.data) > most:
            raise UnusableImageError(f"is larger than {most / 1e6:g} MB")
        return _Loaded(reference, (*notes, *more))

    async def _bytes_of(self, item: object) -> bytes:
        if isinstance(item, Mapping):
            return await self._from_mapping(item)
        if isinstance(item, ImageResult):
            return item.image_bytes
        if isinstance(item, bytes):
            return item
        if isinstance(item, (bytearray, memoryview)):
            self._limits.check_bytes(memoryview(item).nbytes)
            return await off_loop(bytes, item, pool=Pool.REFERENCES)
        if isinstance(item, str):
            return await self._from_text(item)
        if isinstance(item, os.PathLike):
            read = partial(_read, item, self._limits)
            return await self._in_time(partial(off_loop, read, pool=Pool.FILES))
        raise UnusableImageError(f"is of type {type(item).__name__}, not an image")

    async def _from_mapping(self, item: Mapping[object, object]) -> bytes:
        content = item.get("image_base64")
        if isinstance(content, (str, bytes)) and content:
            return await self._from_base64(content)
        address = item.get("image_url")
        if isinstance(address, Mapping):
            address = address.get("url")
        if isinstance(address, str) and address:
            return await self._from_text(address)
        raise UnusableImageError("has neither image_base64 nor image_url")

    async def _from_text(self, text: str) -> bytes:
        if not text[:_HEAD].lstrip().lower().startswith(_ADDRESS):
            return await self._from_text_without_address(text)
        if self._fetch is None:
            raise UnusableImageError("is an address, and loading from addresses is off")
        return await self._in_time(partial(self._fetch.fetch, text))

    async def _from_text_without_address(self, text: str) -> bytes:
        if len(text) > _LONGEST_NAME or text[:_HEAD].lstrip().lower().startswith("data:"):
            return await self._from_base64(text)
        try:
            data = await self._from_base64(text)
        except UnusableImageError:
            data = b""
        if sniff_mime(data) is None:  # many paths without a dot are valid base64
            raise UnusableImageError(
                "is neither an image in base64 nor an https address; pass pathlib.Path for a file"
            )
        return data

    async def _in_time(self, load: Callable[[], Awaitable[bytes]]) -> bytes:
        """Load from an address or a file within the time limit."""
        try:
            if asyncio.get_running_loop().time() < self._until:
                async with asyncio.timeout_at(self._until):
                    return await load()
        except TimeoutError:
            pass
        raise UnusableImageError("took too long to load")

    async def _from_base64(self, text: str | bytes) -> bytes:
        self._limits.check_bytes(int(len(text) / _BASE64_SLACK * 3 / 4) - _BASE64_PREFIX)
        return await decode_base64_async(text)


def _read(path: os.PathLike[str], limits: ImageLimits) -> bytes:
    with _file_errors():
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could block forever
            raise UnusableImageError("is not a regular file")
        limits.check_bytes(status.st_size)
        with Path(path).open("rb") as file:
            return file.read(limits.max_reference_bytes + 1)


@contextmanager
def _file_errors() -> Iterator[None]:
    """Raise errors without the path, which would reveal details of this machine."""
    try:
        yield
    except UnusableImageError:
        raise
    except (OSError, TypeError, ValueError) as error:  # ValueError: a null character in the path
        raise UnusableImageError(f"could not be read ({type(error).__name__})") from None
