"""References become images, or are dropped with their reason."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images_samples import delivered, encoded, noise, opened, picture, raw_png

from resilient_imagen.errors import InvalidRequestError
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.limits import ImageLimits
from resilient_imagen.references.loading import LoadedReferences, load_references
from resilient_imagen.testing import run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.references.fetch import Fetcher

PNG = encoded(picture(), "PNG")
JPEG = encoded(picture(), "JPEG")
TEXT = base64.b64encode(PNG).decode()
URL = "https://pictures.test/a.png?signature=secret"
NO_IMAGE_TEXT = "is neither an image in base64 nor an https address; pass pathlib.Path for a file"
RESULT = delivered(PNG)


class Pages:
    """A fetcher that returns scripted results and counts concurrent loads."""

    def __init__(self, page: bytes | UnusableImageError = PNG) -> None:
        self.page = page
        self.urls: list[str] = []
        self.loading = self.most_loading = 0

    async def fetch(self, url: str) -> bytes:
        self.urls.append(url)
        self.loading += 1
        self.most_loading = max(self.most_loading, self.loading)
        await asyncio.sleep(0)
        self.loading -= 1
        if isinstance(self.page, UnusableImageError):
            raise self.page
        return self.page


def load(
    *items: object,
    fetch: Pages | None = None,
    strict: bool = False,
    most: int | None = None,
    max_bytes: int | None = None,
    **limits: Any,
) -> LoadedReferences:
    fetcher: Fetcher | None = fetch  # type: ignore[assignment]
    return asyncio.run(
        load_references(
            items,
            limits=ImageLimits(**limits),
            fetch=fetcher,
            strict=strict,
            most=most,
            max_bytes=max_bytes,
        )
    )


KINDS: dict[str, object] = {
    "dict": {"image_base64": TEXT, "mime_type": "image/png"},
    "dict that lies about its type": {"image_base64": TEXT, "mime_type": "image/webp"},
    "dict of bytes": {"image_base64": TEXT.encode()},
    "dict with a data URL": {"image_base64": f"data:image/png;base64,{TEXT}"},
    "dict with an empty text and a URL": {"image_base64": "", "image_url": URL},
    "dict with None and a URL": {"image_base64": None, "image_url": {"url": URL}},
    "dict with a data URL as its URL": {"image_url": {"url": f"data:image/png;base64,{TEXT}"}},
    "data URL": f"data:image/png;base64,{TEXT}",
    "base64": TEXT,
    "bytes": PNG,
    "bytearray": bytearray(PNG),
    "memoryview": memoryview(PNG),
    "strided memoryview": memoryview(bytes(each for byte in PNG for each in (byte, 0)))[::2],
    "address": URL,
    "loud address": URL.upper(),
    "address with spaces around it": f" \n{URL} ",
    "result dict": RESULT.to_dict(),
    "result": RESULT,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_item_is_understood(kind: str) -> None:
    """Each kind of item gives the same image, with the type detected from its bytes."""
    loaded = load(KINDS[kind], fetch=Pages())

    assert [(each.data, each.mime_type, each.index) for each in loaded.references] == [
        (PNG, "image/png", 0)
    ]
    assert loaded.dropped == ()
    assert loaded.notes == ()


def test_a_file_is_read(tmp_path: Path) -> None:
    """A Path, or another path-like object, is read as a file."""

    class Named:
        def __fspath__(self) -> str:
            return str(tmp_path / "a.png")

    (tmp_path / "a.png").write_bytes(PNG)

    assert [each.data for each in load(tmp_path / "a.png", Named()).references] == [PNG, PNG]


def test_good_bytes_are_not_copied() -> None:
    """Valid bytes are sent as the caller's own object."""
    assert load(PNG).references[0].data is PNG


def test_a_str_is_never_a_path(tmp_path: Path) -> None:
    """A str may come from a stranger, so it is never read as a path."""
    (tmp_path / "a.png").write_bytes(PNG)

    loaded = load(str(tmp_path / "a.png"), f"file://{tmp_path}/a.png")

    assert [each["why"] for each in loaded.dropped] == [NO_IMAGE_TEXT] * 2
    (bucket,) = load("gs://bucket/secret").dropped
    assert "pass pathlib.Path" in bucket["why"]


@pytest.mark.parametrize("raw", ["a.png", Path("a.png"), PNG])
def test_a_single_image_in_place_of_a_list_is_refused(raw: Any) -> None:
    """The error has the type of the value, and nothing of its content."""

    async def run() -> None:
        await load_references(raw, limits=ImageLimits(), fetch=None, strict=False)

    with pytest.raises(InvalidRequestError) as caught:
        asyncio.run(run())
    kind = type(raw).__name__
    assert str(caught.value) == f"reference_images must be a list of images, not {kind}"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def large_file(folder: Path) -> Path:
    (folder / "large").write_bytes(bytes(5001))
    return folder / "large"


UNUSABLE: dict[str, tuple[object | Callable[[Path], Path], str]] = {
    "dict without anything": ({}, "has neither image_base64 nor image_url"),
    "dict with None": ({"image_base64": None}, "has neither image_base64 nor image_url"),
    "dict with a number": ({"image_base64": 7}, "has neither image_base64 nor image_url"),
    "None": (None, "is of type NoneType, not an image"),
    "number": (7, "is of type int, not an image"),
    "bad base64": ({"image_base64": "secret!"}, "is not valid base64"),
    "empty text": ("", NO_IMAGE_TEXT),
    "path that is valid base64": ("folders/secret12", NO_IMAGE_TEXT),
    "path without an extension": ("./secret", NO_IMAGE_TEXT),
    "empty bytes": (b"", "is not an image of a known type"),
    "page instead of an image": (b"<html>secret</html>", "is not an image of a known type"),
    "torn": (JPEG[:-50], "is truncated or damaged"),
    "torn base64": (base64.b64encode(PNG[:-30]).decode(), "is truncated or damaged"),
    "bomb": (raw_png(50_000, 50_000, 8, 2, b""), "has more than 250 megapixels"),
    "large bytes": (bytes(5001), "is larger than 0.005 MB"),
    "large bytearray": (bytearray(5001), "is larger than 0.005 MB"),
    "large base64": (base64.b64encode(bytes(9000)).decode(), "is larger than 0.005 MB"),
    "large file": (large_file, "is larger than 0.005 MB"),
    "no file": (lambda folder: folder / "secret", "could not be read (FileNotFoundError)"),
    "folder": (lambda folder: folder, "is not a regular file"),
    "pipe": (pipe, "is not a regular file"),
    "null in a path": (lambda _folder: Path("secret\0"), "could not be read (ValueError)"),
    "address that fails": (URL, "was not found"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_item_is_dropped_with_its_reason(case: str, tmp_path: Path) -> None:
    """Other items keep their index; the reason has no content of the dropped one."""
    item, why = UNUSABLE[case]
    item = item(tmp_path) if callable(item) else item
    pages = Pages(UnusableImageError("was not found"))

    loaded = load(PNG, item, JPEG, fetch=pages, max_reference_bytes=5000, max_pixels=1_000_000)

    assert [each.index for each in loaded.references] == [0, 2]
    assert loaded.dropped == ({"index": 1, "why": why},)


@pytest.mark.parametrize("case", UNUSABLE)
def test_strict_raises_for_the_first_unusable_item(case: str, tmp_path: Path) -> None:
    """The error names its index and the reason, and nothing of its content."""
    item, why = UNUSABLE[case]
    item = item(tmp_path) if callable(item) else item
    pages = Pages(UnusableImageError("was not found"))

    with pytest.raises(InvalidRequestError) as caught:
        load(PNG, item, 7, fetch=pages, strict=True, max_reference_bytes=5000, max_pixels=10**6)

    assert str(caught.value) == f"reference_images[1] {why}"
    assert caught.value.__context__ is None


def test_addresses_are_dropped_where_loading_is_off() -> None:
    """Without a Fetcher, URLs are dropped."""
    assert "loading from addresses is off" in load(URL).dropped[0]["why"]


def test_image_base64_comes_before_image_url() -> None:
    """If an item has image_base64, its image_url is not loaded."""
    pages = Pages()

    load({"image_base64": TEXT, "image_url": URL}, fetch=pages)

    assert pages.urls == []


def test_a_normalized_reference_is_noted_with_its_index() -> None:
    """The note has the index and the reason of the change."""
    loaded = load(PNG, encoded(picture(mode="CMYK"), "JPEG"))

    assert loaded.notes == ("reference 1 normalized: mode CMYK: sent as image/jpeg",)
    assert loaded.references[1].mime_type == "image/jpeg"


def test_a_normalized_reference_that_has_grown_is_shrunk() -> None:
    """A GIF that becomes a far larger PNG is shrunk to the limit."""
    gif = encoded(noise(1400, 1400, "L").point(lambda value: value & 0xC0), "GIF")

    loaded = load(gif, max_reference_bytes=len(gif))

    assert len(loaded.references[0].data) <= len(gif)
    assert [note.split()[:3] for note in loaded.notes] == [
        ["reference", "0", "normalized:"],
        ["reference", "0", "made"],
    ]


def test_order_is_kept_and_concurrency_is_limited() -> None:
    """The order is kept, and the number of concurrent loads is limited."""
    pages = Pages()

    loaded = load(*[URL] * 16, fetch=pages, max_loading=3)

    assert [each.index for each in loaded.references] == list(range(16))
    assert pages.most_loading == 3


def test_no_more_are_read_than_can_be_sent() -> None:
    """After the first usable references, the rest is listed and not loaded."""
    pages = Pages()

    loaded = load(7, URL, 7, *[URL] * 300, fetch=pages, most=3)

    assert [each.index for each in loaded.references] == [1, 3, 4]
    assert len(pages.urls) == 3
    assert [each["index"] for each in loaded.dropped] == [0, 2, *range(5, 303)]
    assert loaded.dropped[2]["why"] == "was not read: no more than 3 can be sent"


def test_strict_references_may_exceed_the_models_limit() -> None:
    """With strict references, too many are listed, not an error."""
    loaded = load(PNG, JPEG, 7, strict=True, most=2)

    assert [each["index"] for each in loaded.dropped] == [2]


@pytest.mark.parametrize("item", [URL, b"no image"])
@pytest.mark.parametrize("most", [14, None])
def test_no_more_are_tried_than_can_be_of_use(item: object, most: int | None) -> None:
    """The number of tried references is limited even if none is usable."""
    pages = Pages(UnusableImageError("was not found"))

    loaded = load(*[item] * 50_000, fetch=pages, most=most)

    assert len(pages.urls) == (32 if isinstance(item, str) else 0)
    assert [each["index"] for each in loaded.dropped] == list(range(50_000))
    assert loaded.dropped[31]["why"] != loaded.dropped[32]["why"]
    assert {each["why"] for each in loaded.dropped[32:]} == {
        "was not read: no more than 32 are tried for one image"
    }


def test_unusable_ones_do_not_take_the_place_of_usable_ones() -> None:
    """Unusable references do not count toward the limit."""
    loaded = load(*[b"no image"] * 18, *[PNG] * 20, fetch=None, most=14)

    assert [each.index for each in loaded.references] == list(range(18, 32))
    assert loaded.dropped[-1]["why"] == "was not read: no more than 14 can be sent"


class SlowPages(Pages):
    """A fetcher that returns each page after its own delay."""

    async def fetch(self, url: str) -> bytes:
        await asyncio.sleep(float(url.rpartition("/")[2]))
        return await super().fetch(url)


@pytest.mark.parametrize(("seconds", "expected"), [(60.0, 20.0), (5.0, 5.0)])
def test_waiting_for_addresses_is_bounded_for_all_together(seconds: float, expected: float) -> None:
    """References loaded within the common time limit are used; others have a reason."""

    async def run() -> tuple[LoadedReferences, float]:
        pages: Any = SlowPages()
        raw = ["https://a.test/1", *["https://a.test/3600"] * 8, PNG, "https://a.test/1"]
        loaded = await load_references(
            raw, limits=ImageLimits(), fetch=pages, strict=False, seconds=seconds
        )
        return loaded, asyncio.get_running_loop().time()

    loaded, took = run_virtual(run())

    assert took == pytest.approx(expected)
    assert [each.index for each in loaded.references] == [0, 9]
    assert {each["why"] for each in loaded.dropped} == {"took too long to load"}


def test_a_reference_of_too_many_bytes_is_made_smaller() -> None:
    """A large reference is shrunk; one above the reading limit is rejected unread."""
    photo = encoded(noise(700, 700), "PNG")
    most = len(photo) // 2

    loaded = load(photo, max_bytes=most)

    assert len(loaded.references[0].data) <= most
    assert loaded.notes[0].startswith("reference 0 made smaller for its size")


def test_a_reference_of_too_many_pixels_is_made_smaller() -> None:
    """A large reference is shrunk; one above the limit is rejected by its header."""
    loaded = load(PNG, max_pixels=2000)

    assert opened(loaded.references[0].data).size == (24, 40)
    assert loaded.notes == (
        "reference 0 normalized: more than 0.002 megapixels: sent as image/png",
    )
    (refused,) = load(PNG, max_pixels=2000, max_read_pixels=3000).dropped
    assert refused["why"] == "has more than 0.003 megapixels"


@pytest.mark.parametrize("raw", [TEXT, PNG, bytearray(PNG), {"image_base64": TEXT}, None, 7])
def test_a_single_image_instead_of_a_list_is_an_error(raw: Any) -> None:
    """A single item would otherwise be iterated letter by letter."""
    with pytest.raises(InvalidRequestError, match="must be a list"):
        asyncio.run(load_references(raw, limits=ImageLimits(), fetch=None, strict=False))


ITEMS = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=20), st.binary(max_size=20),
              st.sampled_from([TEXT, PNG, JPEG, JPEG[:100], URL])),
    lambda inner: st.dictionaries(st.sampled_from(["image_base64", "image_url", "url"]), inner),
    max_leaves=6,
)  # fmt: skip


@given(st.lists(ITEMS, max_size=5))
def test_every_item_is_either_used_or_dropped(items: list[object]) -> None:
    """Every item is used or dropped, in order, without an exception."""
    loaded = load(*items, fetch=Pages())

    used = [each.index for each in loaded.references]
    dropped = [each["index"] for each in loaded.dropped]
    assert sorted(used + dropped) == list(range(len(items)))
    assert used == sorted(used)
    assert dropped == sorted(dropped)


@pytest.mark.parametrize(
    "bounds", [{"max_pixels": 0}, {"max_reference_bytes": -1}, {"max_loading": 0},
               {"max_read_pixels": 0}, {"max_tried": 0},
               {"fetch_seconds": 0.0}, {"connect_seconds": float("nan")}, {"max_redirects": -1}],
    ids=str,
)  # fmt: skip
def test_limits_of_zero_are_rejected(bounds: dict[str, Any]) -> None:
    """A limit of zero is rejected."""
    with pytest.raises(ValueError, match="must"):
        ImageLimits(**bounds)
