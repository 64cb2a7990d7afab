"""What a picture file holds beside its pixels, left out where Pillow cannot read it.

Cameras, editors and generators write EXIF, XMP, ICC profiles and long texts into pictures, not always
whole. Pillow refuses the file then, and every other program shows it. So does this one: the file is
read once more without them. Left in are what says how the pixels are stored, and what says which side
is up, where that part is whole.
"""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

PNG_START = b"\x89PNG\r\n\x1a\n"
# Chunks that decide how pixels look (PNG specification, third edition, section 11).
PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}
PNG_XMP = b"XML:com.adobe.xmp\0\0"  # and not compressed
JPEG_START = b"\xff\xd8"
# The first piece of pixels; what follows is copied as it is.
JPEG_SCAN = 0xDA
# APP0 (JFIF) and APP14 (Adobe) say which colours the components are; APP1 may say which side is up.
JPEG_DROPPED = {*range(0xE2, 0xEE), 0xEF, 0xFE}
JPEG_TURNED = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")


def without_metadata(file: BinaryIO, limit: int) -> io.BytesIO | None:
    """A PNG or JPEG file without what Pillow may fail at; None for any other file.

    Args:
        file: The picture, from its beginning.
        limit: Bytes that the rest may have; None where it has more.
    """
    start = file.read(len(PNG_START))
    kept = io.BytesIO()
    if start == PNG_START:
        kept.write(start)
        whole = _copy_png(file, kept, limit)
    elif start.startswith(JPEG_START):
        file.seek(len(JPEG_START))
        kept.write(JPEG_START)
        whole = _copy_jpeg(file, kept, limit)
    else:
        return None
    kept.seek(0)
    return kept if whole else None


def _copy_png(file: BinaryIO, kept: io.BytesIO, limit: int) -> bool:
    """Copy the chunks that count: length, name, content and checksum each."""
    while len(head := file.read(8)) == 8:
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name in PNG_PIXELS or name in (b"eXIf", b"iTXt"):
            if kept.tell() + length > limit:
                return False
            content, checksum = file.read(length), file.read(4)
            if name in PNG_PIXELS or _png_turned(name, content, checksum):
                kept.write(head + content + checksum)
        else:
            file.seek(length + 4, io.SEEK_CUR)
        if name == b"IEND":
            break
    return True


def _png_turned(name: bytes, content: bytes, checksum: bytes) -> bool:
    """Whether a chunk that may say which side is up is whole."""
    whole = zlib.crc32(name + content) == int.from_bytes(checksum, "big")
    return whole and (name == b"eXIf" or content.startswith(PNG_XMP))


def _copy_jpeg(file: BinaryIO, kept: io.BytesIO, limit: int) -> bool:
    """Copy the segments that count up to the first scan, and everything from there."""
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        marker, length = head[1], int.from_bytes(head[2:], "big")
        if length < 2:
            break
        content = file.read(length - 2)
        turned = marker != 0xE1 or content.startswith(JPEG_TURNED)
        if marker not in JPEG_DROPPED and turned:
            kept.write(head + content)
        if marker == JPEG_SCAN:
            rest = file.read(max(0, limit - kept.tell()))
            kept.write(rest)
            return not file.read(1)
    return True
