"""Load reference images from every form that a caller may pass, ready to be sent."""

from __future__ import annotations

import asyncio
import math
import os
import re
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
"""Characters of a text, which may be megabytes of base64, that are looked at for an address."""
_LONGEST_NAME: Final = 4096
_NAME: Final = re.compile(
    r"^[a-z][a-z0-9+.-]*://|\.(png|jpe?g|webp|gif|bmp|tiff?|hei[cf]|avif)$", re.IGNORECASE
)
"""What is meant for a file or a store: base64 has neither colons nor dots."""
_BASE64_SLACK: Final = 1.1
"""How much longer base64 may be than its bytes need, for line breaks."""
_BASE64_PREFIX: Final = 1024
"""Characters that a data URL may begin with."""


@dataclass(frozen=True, slots=True)
class LoadedReferences:
    """A caller's reference images, sorted into those that can be sent and those that cannot."""

    references: tuple[Reference, ...]
    """In the caller's order; each knows its place in it."""
    dropped: tuple[DroppedReference, ...]
    notes: tuple[str, ...]
    """What was mended or made smaller, in words."""


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
    """Load, check and mend reference images, several at a time, off the event loop.

    An item may be: a dict with ``image_base64`` (a result dict has it) or, if that is empty,
    ``image_url`` (an address, or a dict with one as ``url``); an ImageResult; bytes, bytearray or
    memoryview of an encoded picture; an os.PathLike to a file; a text that is an http(s) address, a
    data URL, or base64. A text is never taken for a file's path, even of one that exists: it may
    come from a stranger. A claimed mime type is ignored: the bytes say what they are.

    Args:
        raw: The caller's items.
        limits: What a single one may ask for.
        fetch: Loads addresses; None drops items that are addresses.
        strict: Raise for an item that cannot be used, rather than drop it.
        most: How many can be sent: once so many are usable, the rest is listed, and not read. Nor
            are those read that come after the first limits.max_tried.
        max_bytes: Bytes of one that can be sent; a larger one is made smaller.
        seconds: Within which all addresses and files must be read; those left then are dropped.
            Never more than limits.fetch_seconds.
        called: What errors call an item of the given index.

    Raises:
        InvalidRequestError: ``raw`` is no sequence of items; or, when strict, an item cannot be
            used: the text has its name and the cause, nothing of its content.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes, bytearray, memoryview)):
        raise InvalidRequestError("reference_images must be a list of images")
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
    """One call's way of loading: its limits, until when, and how many at a time."""

    def __init__(
        self, limits: ImageLimits, fetch: Fetcher | None, max_bytes: int | None, seconds: float
    ) -> None:
        self._limits = limits
        self._fetch = fetch
        self._max_bytes = min(limits.max_reference_bytes, max_bytes or limits.max_reference_bytes)
        self._until = asyncio.get_running_loop().time() + min(seconds, limits.fetch_seconds)
        self._breaker = asyncio.Semaphore(limits.max_loading)

    async def load(self, index: int, item: object) -> _Loaded | DroppedReference:
        """Make a reference of an item, or say why it cannot be one."""
        async with self._breaker:
            try:
                data = await self._bytes_of(item)
                self._limits.check_bytes(len(data))
                return await self._mended(index, data)
            except UnusableImageError as error:
                return DroppedReference(index=index, why=str(error))

    async def _mended(self, index: int, data: bytes) -> _Loaded:
        bounds = {
            "max_pixels": self._limits.max_pixels,
            "max_read_pixels": self._limits.max_read_pixels,
        }
        mended = await off_loop(partial(normalize, data, **bounds), pool=pool_for(data))
        notes = [] if mended.note is None else [f"reference {index} mended: {mended.note}"]
        reference = Reference(mended.data, mended.mime_type, index)
        # A mended picture may have grown: what was a small GIF or AVIF is now a PNG.
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
            if len(text) <= _LONGEST_NAME and _NAME.search(text.strip()):
                raise UnusableImageError(
                    "is a text; pass pathlib.Path for a file, or an https address"
                )
            return await self._from_base64(text)
        if self._fetch is None:
            raise UnusableImageError("is an address, and loading from addresses is off")
        return await self._in_time(partial(self._fetch.fetch, text))

    async def _in_time(self, load: Callable[[], Awaitable[bytes]]) -> bytes:
        """Wait for what comes from elsewhere while the call can afford it, and no longer."""
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
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait for ever
            raise UnusableImageError("is not a regular file")
        limits.check_bytes(status.st_size)
        with Path(path).open("rb") as file:
            return file.read(limits.max_reference_bytes + 1)


@contextmanager
def _file_errors() -> Iterator[None]:
    """Leave the path out of errors: it says more of this machine than a caller may learn."""
    try:
        yield
    except UnusableImageError:
        raise
    except (OSError, TypeError, ValueError) as error:  # ValueError: a null character in the path
        raise UnusableImageError(f"is a file that gives {type(error).__name__}") from None
