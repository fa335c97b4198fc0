"""Hostile images, whose decoding would cost far more than their size suggests."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

from images_samples import encoded, exif, picture, png_chunk, raw_png
from PIL import Image

from resilient_imagen.images.inspect import jpeg_segments, png_chunks

if TYPE_CHECKING:
    from collections.abc import Callable

TURNED: Final = exif(6)
"""EXIF orientation, so that an image is decoded that would otherwise be sent unchanged."""


def flat(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height))


def segment(code: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def with_segments(jpeg: bytes, segments: bytes) -> bytes:
    return jpeg[:2] + segments + jpeg[2:]


def many_scans(side: int, scans: int, *, restarts: bool = False) -> bytes:
    """Return a progressive JPEG with ``count`` additional empty scans over all pixels."""
    jpeg = encoded(flat(side, side), "JPEG", progressive=True, subsampling=0, exif=TURNED)
    interval = segment(0xDD, struct.pack(">H", 1)) if restarts else b""
    scan = segment(0xDA, bytes([3, 1, 0, 2, 0, 3, 0, 0, 0, 0x10])) + b"\0"
    return jpeg[:-2] + interval + scan * scans + b"\xff\xd9"


def hidden_scans(side: int, scans: int) -> bytes:
    """Return many_scans after a comment that contains an end-of-image marker."""
    jpeg = many_scans(side, scans)
    end = jpeg.index(b"\xff\xd9") if b"\xff\xd9" in jpeg[:-2] else len(jpeg) - 2
    first = next(at for code, at in jpeg_segments(jpeg) if code == 0xDA)
    second = jpeg.index(b"\xff\xda", first + 2)
    assert second < end
    return jpeg[:second] + segment(0xFE, b"\xff\xd9") + jpeg[second:]


def skipped_scans(side: int, scans: int) -> bytes:
    """Return many_scans after a meaningless marker whose length covers them all."""
    jpeg = many_scans(side, scans, restarts=True)
    interval = jpeg.rindex(b"\xff\xdd\0\4\0\1") + 6
    first = jpeg.index(b"\xff\xda", interval)
    assert len(jpeg) - first < 65_000
    return jpeg[: first + 15] + b"\xff\x02\xfe\xff" + jpeg[first + 15 :]


def scans_of_a_plain_jpeg(side: int, scans: int) -> bytes:
    """Return a baseline JPEG that repeats its components, one by one."""
    jpeg = encoded(flat(side, side), "JPEG", subsampling=0, exif=TURNED)
    scan = next(at for code, at in jpeg_segments(jpeg) if code == 0xDA)
    one = segment(0xDA, bytes([1, 1, 0, 0, 63, 0])) + b"\0"
    return jpeg[:scan] + one * scans + b"\xff\xd9"


def coded(jpeg: bytes, kind: int) -> bytes:
    """Return the JPEG marked as coded differently: 0xC3 lossless, 0xC9 arithmetic ..."""
    frame = next(at for code, at in jpeg_segments(jpeg) if code in {0xC0, 0xC2})
    return jpeg[: frame + 1] + bytes([kind]) + jpeg[frame + 2 :]


def endless_segments(count: int) -> bytes:
    """Return a progressive JPEG with many empty comments between its scans."""
    jpeg = encoded(flat(16, 16), "JPEG", progressive=True, exif=TURNED)
    return jpeg[:-2] + segment(0xFE, b"") * count + b"\xff\xd9"


def long_exif(segments: int) -> bytes:
    """Return EXIF data in many parts, which a reader may concatenate again for each part."""
    jpeg = encoded(picture(), "JPEG")
    return with_segments(jpeg, segment(0xE1, b"Exif\0\0" + bytes(65_000)) * segments)


def directory(entries: int, size: int) -> bytes:
    """Return EXIF data whose entries all refer to the same bytes."""
    values = 8 + 2 + 12 * entries + 4
    each = [struct.pack(">HHII", 0x400 + n, 3, size // 2, values) for n in range(entries)]
    head = b"MM\0*" + struct.pack(">IH", 8, entries)
    return head + b"".join(each) + bytes(4) + b"\x7f\xf1" * (size // 2)


def exif_bomb(code: int = 0xE1, label: bytes = b"Exif\0\0") -> bytes:
    jpeg = encoded(picture(), "JPEG")
    without_jfif = jpeg[:2] + jpeg[20:]
    return with_segments(without_jfif, segment(code, label + directory(2600, 33_000)))


def png_with(chunk: bytes) -> bytes:
    png = encoded(picture(mode="P"), "PNG")
    return png[:33] + chunk + png[33:]


def texts(count: int, kind: bytes) -> bytes:
    """Return a PNG with ``count`` text chunks of a megabyte each, compressed to a kilobyte."""
    packed = zlib.compress(bytes(1_000_000))
    head = b"key\0\0" if kind == b"zTXt" else b"key\0\1\0\0\0"
    return png_with(png_chunk(kind, head + packed) * count)


def packed_profile(size: int) -> bytes:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1_000_000)) for _ in range(size // 1_000_000))
    return png_with(png_chunk(b"iCCP", b"key\0\0" + packed + packer.flush()))


def overlong_png(megabytes: int) -> bytes:
    """Return a PNG of one pixel, followed by superfluous zeros."""
    packer = zlib.compressobj(9)
    packed = packer.compress(bytes(4))
    packed += b"".join(packer.compress(bytes(1_000_000)) for _ in range(megabytes))
    png = raw_png(1, 1, 16, 2, b"")
    (start, end) = next((at, end) for kind, at, end in png_chunks(png) if kind == b"IDAT")
    return png[:start] + png_chunk(b"IDAT", packed + packer.flush()) + png[end:]


def narrow_png(width: int, height: int) -> bytes:
    """Return a palette PNG in which a row costs far more than its pixels."""
    packer = zlib.compressobj(1)
    row = bytes(1 + width)
    step = min(height, max(1, 10**7 // len(row)))
    packed = b"".join(packer.compress(row * step) for _ in range(height // step)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", bytes(768)), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def frames(count: int, form: str) -> bytes:
    """Return an animation of many small frames."""
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    data = encoded(images[0], form, save_all=True, append_images=images[1:], lossless=True)
    if form == "PNG":
        chunks = [(kind, data[at:end]) for kind, at, end in png_chunks(data)]
        control, content = (
            next(chunk[12:-4] for kind, chunk in reversed(chunks) if kind == wanted)
            for wanted in (b"fcTL", b"fdAT")
        )
        more = (
            png_chunk(b"fcTL", struct.pack(">I", 5 + 2 * n) + control)
            + png_chunk(b"fdAT", struct.pack(">I", 6 + 2 * n) + content)
            for n in range(count)
        )
        return data[:-12] + b"".join(more) + data[-12:]
    if form == "GIF":
        last = data.rindex(b"!\xf9")
        return data[:-1] + data[last:-1] * count + b";"
    last = data.rindex(b"ANMF")
    data += data[last:] * count
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def gif_frame(width: int, height: int) -> bytes:
    """Return a GIF that claims one pixel and has a frame of another size."""
    control = b"!\xf9\x04\x08\0\0\0\0"
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0;"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + control + frame


def gif_comment(megabytes: int) -> bytes:
    gif = encoded(flat(4, 4, "P"), "GIF")
    start = 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 0x80 else 0)
    blocks = (b"\xff" + b"a" * 255) * (megabytes * 4096)
    return gif[:start] + b"!\xfe" + blocks + b"\0" + gif[start:]


def packed_bmp(side: int) -> bytes:
    """Return a run-length encoded BMP of runs of one pixel, which Pillow decodes in Python."""
    bmp = bytearray(encoded(flat(side, side, "L"), "BMP"))
    bmp[30:34] = struct.pack("<I", 1)
    (start,) = struct.unpack_from("<I", bmp, 10)
    return bytes(bmp[:start]) + b"\1\0" * (side * side) + b"\0\1"


def avif_claiming(side: int, claimed: int) -> bytes:
    """Return an AVIF whose container states another size than its frame."""
    avif = encoded(flat(side, side, "L"), "AVIF", speed=10)
    at = avif.index(b"ispe") + 8
    return avif[:at] + struct.pack(">II", claimed, claimed) + avif[at + 8 :]


def avif_repeating(times: int) -> bytes:
    """Return an AVIF whose item refers to its frame several times."""
    avif = encoded(flat(64, 64), "AVIF", speed=10)
    start, end = avif.index(b"mdat") + 4, len(avif)
    at = avif.index(b"iloc")
    size = struct.pack(">I", end - start)
    place = avif.index(size, at)
    longer = struct.pack(">I", (end - start) * times)
    frame = avif[start:end]
    box = struct.pack(">I", 8 + len(frame) * times) + b"mdat"
    return avif[:place] + longer + avif[place + 4 : start - 8] + box + frame * times


def bad_tiff(compression: str) -> bytes:
    """Return a TIFF about which libtiff prints a message per row."""
    tiff = bytearray(encoded(flat(64, 64, "1"), "TIFF", compression=compression))
    tiff[8:40] = b"\xa5" * 32
    return bytes(tiff)


REFUSED: Final[dict[str, tuple[Callable[[], bytes], str]]] = {
    "many scans": (lambda: many_scans(10_000, 2500), "more than 30 scans"),
    "many scans, restarting": (lambda: many_scans(2000, 2500, restarts=True), "more than 32"),
    "many scans behind a false end": (lambda: hidden_scans(500, 2500), "more than 32 scans"),
    "many scans behind a marker of no meaning": (
        lambda: skipped_scans(500, 2500),
        "more than 32 scans",
    ),
    "many scans of a plain jpeg": (lambda: scans_of_a_plain_jpeg(500, 2500), "more than 32"),
    "segments": (lambda: endless_segments(100_000), "too many segments"),
    "arithmetic jpeg": (lambda: coded(encoded(picture(), "JPEG"), 0xC9), "of an unsupported kind"),
    "lossless jpeg": (lambda: coded(encoded(picture(), "JPEG"), 0xC3), "of an unsupported kind"),
    "narrow png": (lambda: narrow_png(1, 100_000_000), "a side of more than 65500 pixels"),
    "flat png": (lambda: narrow_png(100_000_000, 1), "a side of more than 65500 pixels"),
    "webp frames": (lambda: frames(20_000, "WEBP"), "too many frames"),
    "gif frame": (lambda: gif_frame(6000, 5000), "more than 25 megapixels"),
    "packed bmp": (lambda: packed_bmp(2000), "compressed BMP"),
    "avif that claims little": (lambda: avif_claiming(7100, 16), "more than 50 megapixels"),
    "avif of many frames": (lambda: avif_repeating(500), "unsupported kind"),
    "tiff": (lambda: encoded(picture(), "TIFF"), "image/tiff, which is not supported"),
    "ccitt tiff": (lambda: bad_tiff("group4"), "image/tiff, which is not supported"),
}
"""Hostile images that are rejected, with a part of the error's text."""

HARMLESS: Final[dict[str, Callable[[], bytes]]] = {
    "exif in pieces": lambda: long_exif(1500),
    "exif that repeats": exif_bomb,
    "index that repeats": lambda: exif_bomb(0xE2, b"MPF\0"),
    "png exif that repeats": lambda: png_with(png_chunk(b"eXIf", directory(60_000, 5_000_000))),
    "zTXt": lambda: texts(5000, b"zTXt"),
    "iTXt": lambda: texts(5000, b"iTXt"),
    "overlong png": lambda: overlong_png(100),
    "png frames": lambda: frames(20_000, "PNG"),
    "gif frames": lambda: frames(200_000, "GIF"),
    "gif comment": lambda: gif_comment(50),
}
"""Hostile images of which only the harmless parts are read."""
