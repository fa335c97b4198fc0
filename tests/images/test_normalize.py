"""References that providers would refuse are normalized; valid ones stay unchanged."""

from __future__ import annotations

import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images_samples import encoded, exif, opened, picture, png_chunk, raw_png
from PIL import Image, ImageCms, ImageOps

from resilient_imagen.images import codec
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.inspect import jpeg_segments, sniff_mime
from resilient_imagen.images.normalize import NormalizedImage, normalize

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_PIXELS = 100_000_000


def normalized(data: bytes) -> NormalizedImage:
    return normalize(data, max_pixels=MAX_PIXELS)


def near(left: Image.Image, right: Image.Image, tolerance: int = 12) -> bool:
    """Return whether two images look the same, within the error of lossy encoding."""
    if left.size != right.size:
        return False
    pairs = zip(left.convert("RGB").tobytes(), right.convert("RGB").tobytes(), strict=True)
    return max(abs(a - b) for a, b in pairs) <= tolerance


BROKEN_EXIF = b"Exif\0\0MM\0*\xff\xff\xff\xff"
GOOD = {
    "png": encoded(picture(), "PNG"),
    "png with alpha": encoded(picture(mode="RGBA"), "PNG"),
    "png grey": encoded(picture(mode="L"), "PNG"),
    "jpeg": encoded(picture(), "JPEG"),
    "jpeg grey": encoded(picture(mode="L"), "JPEG"),
    "jpeg progressive": encoded(picture(), "JPEG", progressive=True),
    "jpeg upright by exif": encoded(picture(), "JPEG", exif=exif(1)),
    "jpeg with broken exif": encoded(picture(), "JPEG", dpi=(72, 72), exif=BROKEN_EXIF),
    "webp": encoded(picture(), "WEBP"),
    "webp lossless": encoded(picture(mode="RGBA"), "WEBP", lossless=True),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_valid_image_is_returned_as_the_same_object(case: str) -> None:
    """A valid image is not copied."""
    data = GOOD[case]

    result = normalized(data)

    assert result.data is data
    assert result.mime_type == sniff_mime(data)
    assert result.note is None


def test_a_valid_image_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Header and structure of a valid image suffice; its decoder is not called."""
    from PIL import ImageFile

    def fail(_self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)

    for data in (GOOD["png"], GOOD["jpeg"]):
        assert normalized(data).data is data


def animation(form: str) -> bytes:
    frames = [Image.new("RGB", (48, 80), colour) for colour in ("blue", "lime")]
    return encoded(picture(), form, save_all=True, append_images=frames, lossless=True)


def mpo() -> bytes:
    return encoded(picture(), "MPO", save_all=True, append_images=[picture(20, 20)], quality=95)


def sixteen_bit_rgb() -> bytes:
    rows = bytearray()
    for line in range(80):
        rows.append(0)
        for column in range(48):
            rows += struct.pack(">HHH", column * 1300, line * 800, 90 * 257)
    return raw_png(48, 80, 16, 2, bytes(rows))


# name: the encoded image, the type it becomes, the mode it becomes, words in the note
BAD: dict[str, tuple[Callable[[], bytes], str, str, str]] = {
    "mpo": (mpo, "image/jpeg", "RGB", "several images"),
    "cmyk jpeg": (lambda: encoded(picture(mode="CMYK"), "JPEG", quality=95),
                  "image/jpeg", "RGB", "mode CMYK"),
    "palette png": (lambda: encoded(picture(mode="P"), "PNG"), "image/png", "RGB", "mode P"),
    "bilevel png": (lambda: encoded(picture(mode="1"), "PNG"), "image/png", "RGB", "mode 1"),
    "grey png with alpha": (lambda: encoded(picture(mode="LA"), "PNG"),
                            "image/png", "RGBA", "mode LA"),
    "16-bit png": (sixteen_bit_rgb, "image/png", "RGB", "16 bits"),
    "animated png": (lambda: animation("PNG"), "image/png", "RGB", "animated"),
    "animated webp": (lambda: animation("WEBP"), "image/png", "RGB", "animated"),
    "animated gif": (lambda: animation("GIF"), "image/png", "RGB", "image/gif"),
    "bmp": (lambda: encoded(picture(), "BMP"), "image/png", "RGB", "image/bmp"),
    "avif": (lambda: encoded(picture(), "AVIF", quality=95), "image/jpeg", "RGB", "image/avif"),
    "avif with alpha": (lambda: encoded(Image.new("RGBA", (48, 80), (1, 2, 3, 4)), "AVIF"),
                        "image/png", "RGBA", "image/avif"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_an_unsupported_image_is_normalized(case: str) -> None:
    """The result needs no further change, and the note has the cause."""
    make, mime, mode, words = BAD[case]
    data = make()

    result = normalized(data)

    assert (result.mime_type, opened(result.data).mode) == (mime, mode)
    assert sniff_mime(result.data) == mime
    assert result.note is not None
    assert words in result.note
    assert normalized(result.data).data is result.data


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [("mpo", 12), ("cmyk jpeg", 20), ("animated png", 0), ("animated webp", 0),
     ("bmp", 0), ("avif", 20), ("palette png", 60), ("animated gif", 60)],
)  # fmt: skip
def test_a_normalized_image_looks_the_same(case: str, tolerance: int) -> None:
    """Normalizing keeps the appearance; of several frames it uses the first."""
    assert near(opened(normalized(BAD[case][0]()).data), picture(), tolerance)


def bad_exif(orientation: int) -> bytes:
    """Return EXIF data with an orientation and a reference to missing text."""
    tags = ((0x0112, 3, 1, orientation), (0x010F, 2, 5000, 4000), (0x011A, 5, 1, 4000))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("turn", [1, 6])
def test_broken_metadata_are_accepted_where_warnings_are_errors(turn: int) -> None:
    """A JPEG with broken EXIF data is accepted, and its orientation is read."""
    data = encoded(picture(), "JPEG", exif=bad_exif(turn))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = normalized(data)

    if turn == 1:
        assert result.data is data
    else:
        assert opened(result.data).size == (80, 48)


def test_a_png_with_a_long_text_passes() -> None:
    """A PNG with a text chunk that Pillow refuses to unpack is accepted."""
    good = encoded(picture(), "PNG")
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 * 2**20)))

    assert normalized(good[:33] + text + good[33:]).note is None
    turned = encoded(picture(mode="P"), "PNG")
    assert near(opened(normalized(turned[:33] + text + turned[33:]).data), picture(), 60)


def test_sixteen_bit_grey_is_scaled_not_cut_off() -> None:
    """A 16-bit value of one half becomes half of 255."""
    rows = b"".join(b"\0" + struct.pack(">HHH", 0, 32768, 65535) for _ in range(2))

    result = opened(normalized(raw_png(3, 2, 16, 0, rows)).data)

    assert [result.convert("L").getpixel((x, 0)) for x in range(3)] == [0, 128, 255]


def test_sixteen_bit_colour_keeps_its_high_bytes() -> None:
    """Each 16-bit color value keeps its high byte."""
    result = opened(normalized(sixteen_bit_rgb()).data)

    assert result.getpixel((0, 0)) == (0, 0, 90)
    assert result.getpixel((47, 79)) == (47 * 1300 >> 8, 79 * 800 >> 8, 90)


def test_transparency_of_a_palette_survives() -> None:
    """A palette image with a transparent entry becomes RGBA."""
    source = Image.new("P", (4, 4), 1)
    source.putpalette([255, 0, 0, 0, 255, 0])
    source.putpixel((0, 0), 0)

    result = opened(normalized(encoded(source, "PNG", transparency=0)).data).convert("RGBA")

    assert result.getpixel((0, 0)) == (255, 0, 0, 0)
    assert result.getpixel((1, 1)) == (0, 255, 0, 255)


@pytest.mark.parametrize("turn", range(2, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(form: str, turn: int) -> None:
    """Each EXIF orientation is applied to the pixels of all three types."""
    options = {"lossless": True} if form == "WEBP" else {"quality": 95}
    data = encoded(picture(), form, exif=exif(turn), **options)

    result = normalized(data)

    assert result.mime_type == f"image/{form.lower()}"
    assert opened(result.data).getexif().get(0x0112, 1) == 1
    assert near(opened(result.data), ImageOps.exif_transpose(opened(data)))
    assert result.note is not None
    assert "turned by EXIF" in result.note


def test_an_upright_jpeg_keeps_subsampling_and_profile() -> None:
    """Applying the orientation keeps a JPEG's subsampling and color profile."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(picture(), "JPEG", exif=exif(3), subsampling=0, icc_profile=profile)

    result = opened(normalized(data).data)

    from PIL.JpegImagePlugin import get_sampling

    assert get_sampling(result) == 0
    assert result.info["icc_profile"] == profile


def test_a_profile_for_greys_does_not_stay_on_colours() -> None:
    """A grey image with alpha becomes RGBA and loses its grey profile."""
    data = encoded(picture(mode="LA"), "PNG", icc_profile=b"a profile for greys")

    assert "icc_profile" not in opened(normalized(data).data).info


def test_a_normalized_photo_has_no_location() -> None:
    """EXIF data are not copied, so the location is lost."""
    tags = Image.Exif()
    tags[0x0112] = 6
    tags[0x010F] = "a camera's maker"

    result = normalized(encoded(picture(), "JPEG", exif=tags.tobytes()))

    assert b"camera" not in result.data


def cmyk_profile() -> bytes:
    """Return a profile that converts all inks to grey."""
    levels = [255 - 60 * corner.bit_count() for corner in range(16)]
    colours = bytes(each for level in levels for each in (level, 128, 128))
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (at % 4 == 0) for at in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramp * 4 + colours + ramp * 3
    header = struct.pack(
        ">II4s4s4s4s12x4s28x3i48x", 144 + len(table), 0, b"\x02\x40\0\0", b"prtr", b"CMYK", b"Lab ",
        b"acsp", 63190, 65536, 54061,
    )  # fmt: skip
    return header + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


def test_cmyk_is_converted_by_its_own_profile() -> None:
    """Pure cyan becomes grey by such a profile, and cyan by the plain formula."""
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))

    by_formula = opened(normalized(encoded(cyan, "JPEG")).data).getpixel((8, 8))
    by_profile = opened(normalized(encoded(cyan, "JPEG", icc_profile=cmyk_profile())).data)

    assert by_formula == (0, 255, 255)
    red, green, blue = by_profile.getpixel((8, 8))  # type: ignore[misc]
    assert max(red, green, blue) - min(red, green, blue) <= 4
    assert "icc_profile" not in by_profile.info


def test_cmyk_with_a_broken_profile_is_still_normalized() -> None:
    """A CMYK image with an invalid profile is converted by the plain formula."""
    data = encoded(picture(mode="CMYK"), "JPEG", icc_profile=b"no profile at all" * 20)

    result = opened(normalized(data).data)

    assert result.mode == "RGB"
    assert "icc_profile" not in result.info


REFUSED = {
    "empty": (b"", "not an image"),
    "text": (b"<html>not found</html>", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "torn jpeg": (encoded(picture(), "JPEG")[:-40], "truncated"),
    "torn png": (encoded(picture(), "PNG")[:-40], "truncated"),
    "torn webp": (encoded(picture(), "WEBP")[:-40], "truncated"),
    "torn gif": (encoded(picture(), "GIF")[:60], "damaged"),
    "tiff": (encoded(picture(), "TIFF"), "is image/tiff, which is not supported"),
    "torn mpo": (mpo()[:500], "truncated"),
    "bomb": (raw_png(50_000, 50_000, 8, 2, b""), "more than 100 megapixels"),
    "gif bomb": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(40), "more than 100 mega"),
    "webp bomb": (b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2 + bytes(8),
                  "more than 100 megapixels"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image/heic, which cannot be read here"),
    "nothing but a header": (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IEND", b""), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_unusable_image_is_rejected_with_its_reason(case: str) -> None:
    """The error has the right reason in few words."""
    data, words = REFUSED[case]

    with pytest.raises(UnusableImageError, match=words):
        normalized(data)


def test_the_applications_pixel_limit_is_ignored_and_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image above Pillow's limit is normalized without a warning or a change of it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)

    assert normalized(encoded(picture(mode="P"), "PNG")).mime_type == "image/png"
    assert Image.MAX_IMAGE_PIXELS == 3000
    with pytest.raises(UnusableImageError, match=r"more than 0\.003 megapixels"):
        normalize(encoded(picture(mode="P"), "PNG"), max_pixels=3000)


@pytest.mark.parametrize(
    ("form", "mode"),
    [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"),
     ("PNG", "1"), ("PNG", "I;16"), ("WEBP", "RGB"), ("GIF", "P")],
)  # fmt: skip
@pytest.mark.parametrize("strip", [1, 2**22])
def test_too_many_pixels_become_half_of_each_side(
    form: str, mode: str, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image with too many pixels is halved, in one piece or in strips."""
    monkeypatch.setattr(codec, "_STRIP_PIXELS", strip)
    source = picture(201, 330, mode=mode)

    result = normalize(encoded(source, form), max_pixels=60_000, max_read_pixels=70_000)

    small = opened(result.data)
    assert small.size in {(100, 165), (101, 165)}
    assert result.note is not None
    assert "more than 0.06 megapixels" in result.note
    if mode in {"RGB", "RGBA"}:
        assert near(small, source.resize(small.size, Image.Resampling.BOX), 16)


def test_a_large_image_with_exif_orientation_is_normalized() -> None:
    """Size and orientation are normalized in one step."""
    data = encoded(picture(200, 100), "JPEG", exif=exif(6))

    result = normalize(data, max_pixels=10_000, max_read_pixels=20_000)

    assert opened(result.data).size == (50, 100)


def test_a_giant_jpeg_is_never_decoded_at_full_size() -> None:
    """The JPEG decoder scales a giant image down while decoding."""
    source = codec.open_picture(encoded(picture(200, 100), "JPEG"), 20_000)

    assert codec.reduced(source, 10_000) is source
    assert source.size == (100, 50)


def test_parsing_a_png_of_endless_chunks_stops() -> None:
    """A PNG of hundreds of thousands of chunks takes no longer than one of thousands."""
    good = encoded(picture(), "PNG")
    data = good[:33] + png_chunk(b"teXt", b"") * 300_000 + good[33:]

    with pytest.raises(UnusableImageError, match="truncated or damaged"):
        normalized(data)


def with_checksums(data: bytes) -> bytes:
    """Correct the checksums of a damaged PNG, so that decoders read the rest."""
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(bytes(fixed[at + 4 : end])))
        at = end + 4
    return bytes(fixed)


@given(st.sampled_from([*GOOD, *BAD]), st.data())
def test_a_damaged_image_gives_an_image_or_the_documented_error(
    case: str, data: st.DataObject
) -> None:
    """Damaged bytes of any type give an image or UnusableImageError."""
    damaged = bytearray(GOOD[case] if case in GOOD else SAMPLES[case])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged_data = bytes(damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))])

    try:
        result = normalize(
            with_checksums(damaged_data) if damaged_data[:4] == b"\x89PNG" else damaged_data,
            max_pixels=200_000,
        )
    except UnusableImageError:
        return
    assert sniff_mime(result.data) == result.mime_type
    assert result.mime_type in {"image/png", "image/jpeg", "image/webp"}


def resident(name: str) -> float:
    """Return megabytes of memory: VmRSS, and VmHWM since its reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000


def claiming(data: bytes, width: int, height: int) -> bytes:
    """Return the same image with another size in its header."""
    changed = bytearray(data)
    if data[:4] == b"\x89PNG":
        changed[16:24] = struct.pack(">II", width, height)
        return with_checksums(bytes(changed))
    if data[:3] == b"GIF":
        changed[6:10] = struct.pack("<HH", width, height)
    else:
        frame = next(at for code, at in jpeg_segments(data) if code in {0xC0, 0xC2})
        changed[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(changed)


@given(
    st.sampled_from(["palette png", "animated png", "animated gif", "cmyk jpeg", "mpo"]),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
def claims_lead_to_an_image_or_the_documented_error(case: str, width: int, height: int) -> None:
    with suppress(UnusableImageError):
        normalize(
            claiming(SAMPLES[case], width, height), max_pixels=10**5, max_read_pixels=2 * 10**5
        )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux")
def test_no_claim_takes_more_memory_than_the_limits_allow() -> None:
    """Decoding keeps to the memory limits, whatever size a header claims."""
    claims_lead_to_an_image_or_the_documented_error()  # what is loaded once is loaded
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")

    claims_lead_to_an_image_or_the_documented_error()

    assert resident("VmHWM") - before < 30


SAMPLES = {name: make() for name, (make, *_) in BAD.items()}
