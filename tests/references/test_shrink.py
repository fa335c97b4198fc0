"""References are shrunk until they fit into a request."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images_samples import encoded, noise, opened
from PIL import Image

from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.references.shrink import shrink_to_total
from resilient_imagen.request import Reference

PHOTO = encoded(noise(700, 700), "PNG")
SMALL_PHOTO = encoded(noise(540, 540), "PNG")
OPAQUE_RGBA = encoded(noise(600, 600).convert("RGBA"), "PNG")
CLEAR_RGBA = encoded(noise(600, 600, "RGBA"), "PNG")
JPEG = encoded(noise(700, 700), "JPEG", quality=92)


def shrunk(
    limit: int, *images: bytes
) -> tuple[tuple[Reference, ...], tuple[str, ...], tuple[Reference, ...]]:
    given_in = tuple(
        Reference(data, sniff_mime(data) or "", index) for index, data in enumerate(images)
    )
    references, notes = asyncio.run(shrink_to_total(given_in, limit))
    assert [each.index for each in references] == [each.index for each in given_in]
    assert all(sniff_mime(each.data) == each.mime_type for each in references)
    return references, notes, given_in


def total(references: tuple[Reference, ...]) -> int:
    return sum(len(each.data) for each in references)


def test_references_that_fit_are_unchanged() -> None:
    """References that fit are returned as the same objects, without a note."""
    references, notes, given_in = shrunk(len(PHOTO) + len(JPEG), PHOTO, JPEG)

    assert all(left is right for left, right in zip(references, given_in, strict=True))
    assert notes == ()


def test_the_largest_reference_is_shrunk_first_and_no_more_than_needed() -> None:
    """Converting one large PNG to JPEG suffices; the smaller PNG and all pixels stay."""
    limit = len(PHOTO) + len(SMALL_PHOTO) - 1000

    references, notes, given_in = shrunk(limit, SMALL_PHOTO, PHOTO)

    assert references[0] is given_in[0]
    assert references[1].mime_type == "image/jpeg"
    assert opened(references[1].data).size == (700, 700)
    assert total(references) <= limit
    before, after = (f"{len(each[1].data) / 1e6:.1f} MB" for each in (given_in, references))
    assert notes == (f"reference 1 made smaller for its size: {before} to {after}",)


def test_pixels_are_given_up_last() -> None:
    """Pixels are reduced only after all references are JPEG."""
    as_jpeg = [len(encoded(opened(data), "JPEG", quality=92)) for data in (SMALL_PHOTO, PHOTO)]

    references, _, _ = shrunk(sum(as_jpeg) - 1, SMALL_PHOTO, PHOTO)

    assert [opened(each.data).size for each in references] == [(540, 540), (525, 525)]
    assert {each.mime_type for each in references} == {"image/jpeg"}


def test_an_opaque_alpha_channel_is_removed() -> None:
    """An opaque alpha channel is removed."""
    references, _, _ = shrunk(len(OPAQUE_RGBA) - 1, OPAQUE_RGBA)

    assert references[0].mime_type == "image/jpeg"


def test_transparency_is_kept() -> None:
    """An image with transparency stays PNG, with fewer pixels."""
    references, _, _ = shrunk(len(CLEAR_RGBA) - 1000, CLEAR_RGBA)

    assert references[0].mime_type == "image/png"
    assert opened(references[0].data).mode == "RGBA"


def test_references_that_cannot_fit_are_noted() -> None:
    """Shrinking stops at 512 pixels, with a note that the size is still too large."""
    references, notes, _ = shrunk(1000, PHOTO, encoded(Image.new("RGB", (30, 30)), "PNG"))

    assert max(opened(references[0].data).size) == 525
    assert opened(references[1].data).size == (30, 30)
    assert notes[-1].endswith("over the limit")


def test_an_undecodable_image_is_unchanged() -> None:
    """An image that cannot be decoded is passed on unchanged."""
    damaged = PHOTO[: len(PHOTO) // 2]

    references, notes, given_in = shrunk(10, damaged)

    assert references[0] is given_in[0]
    assert len(notes) == 1


def test_each_may_have_so_many_bytes() -> None:
    """The limit per reference applies independent of the others' size."""
    given_in = tuple(
        Reference(data, sniff_mime(data) or "", index)
        for index, data in enumerate((PHOTO, SMALL_PHOTO))
    )

    references, notes = asyncio.run(shrink_to_total(given_in, 10**9, max_bytes=len(SMALL_PHOTO)))

    assert len(references[0].data) <= len(SMALL_PHOTO)
    assert references[1] is given_in[1]
    assert len(notes) == 1


@pytest.mark.parametrize("images", [(), (JPEG,)])
def test_shrinking_ends_for_any_limit(images: tuple[bytes, ...]) -> None:
    """Shrinking ends for any limit."""
    references, _, _ = shrunk(0, *images)

    assert len(references) == len(images)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from([PHOTO, SMALL_PHOTO, CLEAR_RGBA, JPEG]), max_size=4),
    st.integers(0, 6_000_000),
)
def test_references_fit_or_have_a_note(images: list[bytes], limit: int) -> None:
    """The total is within the limit or noted, and no reference grows."""
    references, notes, given_in = shrunk(limit, *images)

    assert total(references) <= limit or notes[-1].endswith("over the limit")
    pairs = zip(references, given_in, strict=True)
    assert all(len(after.data) <= len(before.data) for after, before in pairs)
