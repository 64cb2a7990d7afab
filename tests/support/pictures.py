"""Picture files with one trait each, as cameras, editors and generators write them.

``READ_BY_BOTH`` are read by transformers too, and ours have to be the same pixels. ``METADATA`` are
whole pictures whose metadata Pillow cannot read or write again, so transformers refuses them; their
pixels are those of ``picture()``, turned where the trait says so.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

from lvlm_runtime.image.picture import TURNED

Writer = Callable[[], bytes]
PNG_HEAD = 33  # signature and IHDR
LONG = 2 << 20  # above Pillow's MAX_TEXT_CHUNK


def picture(mode: str = "RGB", height: int = 40, width: int = 60) -> Image.Image:
    """Smooth colours, so that lossy formats keep them."""
    y, x = np.mgrid[0:height, 0:width]
    image = Image.fromarray(np.stack([x * 4, y * 6, x + y], -1).astype(np.uint8))
    if mode in ("LA", "RGBA"):
        image = image.convert(mode[:-1])
        image.putalpha(Image.fromarray((x * 3).astype(np.uint8)))
        return image
    return image.convert(mode)


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    """The file's bytes."""
    data = io.BytesIO()
    image.save(data, file_format, **options)
    return data.getvalue()


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    """One chunk of a PNG file."""
    crc = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png_with(*chunks: bytes, at_end: bool = False) -> bytes:
    """A PNG with chunks before or behind its pixels."""
    raw = saved(picture(), "PNG")
    at = len(raw) - 12 if at_end else PNG_HEAD
    return raw[:at] + b"".join(chunks) + raw[at:]


def segment(marker: int, content: bytes) -> bytes:
    """One segment of a JPEG file."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(*segments: bytes) -> bytes:
    """A JPEG with segments before its tables."""
    raw = saved(picture(), "JPEG")
    return raw[:2] + b"".join(segments) + raw[2:]


def exif(orientation: int, **tags: object) -> bytes:
    """EXIF as Pillow writes it."""
    content = Image.Exif()
    content[0x0112] = orientation
    for name, value in tags.items():
        content[int(name.removeprefix("tag"))] = value
    return content.tobytes()


def unwritable_exif(orientation: int) -> bytes:
    """EXIF whose orientation reads well and whose other entries Pillow fails to write again.

    The tag of the camera's maker (0x010F), a text, is made that of the compression, a number.
    """
    whole = exif(orientation, tag271="a camera")
    at = whole.index(b"\x01\x0f\x00\x02")
    return whole[:at] + b"\x01\x03" + whole[at + 2 :]


def xmp(orientation: int) -> bytes:
    """XMP that says which side is up."""
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def lab() -> bytes:
    """A TIFF in the CIE L*a*b* colour space, as editors write for print."""
    to = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    image = ImageCms.applyTransform(picture(), to)
    assert image is not None
    return saved(image, "TIFF")


def frames(file_format: str) -> bytes:
    """An animation of two pictures."""
    second = picture().transpose(Image.Transpose.ROTATE_180)
    options = {"lossless": True} if file_format == "WEBP" else {}
    return saved(picture(), file_format, save_all=True, append_images=[second], **options)


def palette_with_transparency() -> bytes:
    """A PNG of 64 colours, some of them transparent."""
    image = picture().quantize(64)
    return saved(image, "PNG", transparency=bytes(range(0, 256, 4)))


def sixteen_bit_rgb() -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads as its upper 8."""
    pixels = np.asarray(picture()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60, 40, 16, 2, 0, 0, 0))
    body = header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


XAP = b"http://ns.adobe.com/xap/1.0/\0"
READ_BY_BOTH: dict[str, Writer] = {
    "tga": lambda: saved(picture(), "TGA"),
    "tga_rgba_rle": lambda: saved(picture("RGBA"), "TGA", compression="tga_rle"),
    "ico": lambda: saved(picture("RGBA", 48, 48), "ICO", sizes=[(16, 16), (48, 48)]),
    "lab_tiff": lab,
    "cmyk_jpeg": lambda: saved(picture("CMYK"), "JPEG"),
    "cmyk_tiff": lambda: saved(picture("CMYK"), "TIFF"),
    "grey_and_alpha_png": lambda: saved(picture("LA"), "PNG"),
    "rgba_png": lambda: saved(picture("RGBA"), "PNG"),
    "palette_with_transparency": palette_with_transparency,
    "sixteen_bit_rgb_png": sixteen_bit_rgb,
    "one_bit_png": lambda: saved(picture("1"), "PNG"),
    "animated_gif": lambda: frames("GIF"),
    "animated_webp": lambda: frames("WEBP"),
    "animated_png": lambda: frames("PNG"),
    "mpo": lambda: frames("MPO"),
    "progressive_jpeg": lambda: saved(picture(), "JPEG", progressive=True),
    "jpeg2000": lambda: saved(picture(), "JPEG2000"),
    "turned_jpeg": lambda: saved(picture(), "JPEG", exif=exif(6)),
    "turned_tiff": lambda: saved(picture(), "TIFF", exif=exif(8)),
    "turned_webp": lambda: saved(picture(), "WEBP", lossless=True, exif=exif(5)),
    "turned_png": lambda: saved(picture(), "PNG", exif=exif(3)),
    "turned_png_exif_behind": lambda: png_with(chunk(b"eXIf", exif(6)[6:]), at_end=True),
    "turned_by_xmp_jpeg": lambda: jpeg_with(segment(0xE1, XAP + xmp(6))),
    "turned_by_xmp_png": lambda: png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(7))),
    "orientation_out_of_range": lambda: saved(picture(), "JPEG", exif=exif(9)),
    "damaged_exif_jpeg": lambda: jpeg_with(segment(0xE1, b"Exif\0\0MM\0\0damaged")),
    "empty_exif_jpeg": lambda: jpeg_with(segment(0xE1, b"Exif\0\0")),
    "broken_icc_jpeg": lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1no profile")),
}
METADATA: dict[str, tuple[Writer, int]] = {
    "long_text_png": (
        lambda: png_with(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * LONG))),
        1,
    ),
    "long_text_behind_png": (
        lambda: png_with(
            chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * LONG)), at_end=True
        ),
        1,
    ),
    "text_of_wrong_checksum_png": (lambda: png_with(chunk(b"tEXt", b"Title\0cat", 1)), 1),
    "long_text_and_turned_png": (
        lambda: png_with(
            chunk(b"eXIf", exif(6)[6:]),
            chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * LONG)),
        ),
        6,
    ),
    "long_profile_png": (
        lambda: png_with(chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"x" * LONG))),
        1,
    ),
    "damaged_exif_png": (lambda: png_with(chunk(b"eXIf", b"MM\0\0damaged")), 1),
    "exif_of_wrong_checksum_png": (lambda: png_with(chunk(b"eXIf", exif(6)[6:], 1)), 1),
    "damaged_hex_exif_png": (
        lambda: png_with(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 6\nzz zz\n")),
        1,
    ),
    "unwritable_exif_jpeg": (lambda: jpeg_with(segment(0xE1, unwritable_exif(6))), 6),
    "damaged_exif_webp": (
        lambda: saved(picture(), "WEBP", lossless=True, exif=b"Exif\0\0MM\0\0damaged"),
        1,
    ),
    "unwritable_exif_webp": (
        lambda: saved(picture(), "WEBP", lossless=True, exif=unwritable_exif(8)),
        8,
    ),
}


def pixels_of(name: str) -> Image.Image:
    """The pixels of a trait of ``METADATA``, upright: those of the same file without the trait."""
    _, orientation = METADATA[name]
    with Image.open(io.BytesIO(saved(picture(), "JPEG" if "jpeg" in name else "PNG"))) as plain:
        return plain.convert("RGB") if orientation == 1 else plain.transpose(TURNED[orientation])
