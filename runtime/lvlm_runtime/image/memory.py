"""Bytes that a picture takes on its way to the model, by arithmetic on its size: before it is decoded.

Pillow keeps a pixel of any colour mode in four bytes (``ImagingNewInternal``, ``src/libImaging``).
"""

from __future__ import annotations

import math

from PIL import Image

from lvlm_runtime.errors import LvlmError

MAX_BYTES = 2_000_000_000
"""What preparing one picture may take; a 108-megapixel phone's picture fits."""

PIXEL = 4
DECODED = 12
"""Bytes per pixel while a file is read: as stored, turned upright, and as RGB; measured 8.1 to 12.1."""
DECODED_BY_LIBRARY = {"WEBP": 20, "JPEG2000": 20}
"""Of formats whose libraries keep whole frames of their own; measured 16.3 to 19.5."""

# Pixels on each side that a filter looks at, at the smaller of both sizes (Pillow's ``Resample.c``).
SUPPORT = {
    Image.Resampling.NEAREST: 0.0,
    Image.Resampling.BOX: 0.5,
    Image.Resampling.BILINEAR: 1.0,
    Image.Resampling.HAMMING: 1.0,
    Image.Resampling.BICUBIC: 2.0,
    Image.Resampling.LANCZOS: 3.0,
}


def decode_bytes(height: int, width: int, file_format: str | None = None) -> int:
    """While a picture of this size (pixels) is read from a file of this format, as Pillow names it."""
    return DECODED_BY_LIBRARY.get(file_format or "", DECODED) * height * width


def stored_bytes(height: int, width: int) -> int:
    """Of a picture in memory."""
    return PIXEL * height * width


def resize_bytes(height: int, width: int, to_height: int, to_width: int, resample: int) -> int:
    """While a picture is resized: both filters, the picture resized across alone, and the result.

    The result's width comes first, so a picture a pixel wide and millions high takes its height times
    the new width; and the filters of a picture millions wide are gigabytes.
    """
    support = SUPPORT[Image.Resampling(resample)]
    filters = sum(
        8 * new * (2 * math.ceil(support * max(1.0, old / new)) + 1)
        for old, new in ((height, to_height), (width, to_width))
        if new > 0
    )
    return filters + stored_bytes(height, to_width) + stored_bytes(to_height, to_width)


def check_bytes(needed: int, what: str) -> None:
    """LvlmError where a step would take more than ``MAX_BYTES``; ``what`` is the picture, in words."""
    if needed > MAX_BYTES:
        raise LvlmError(
            f"{what} takes {needed / 1e9:.1f} GB of memory to prepare for this model,"
            f" {MAX_BYTES / 1e9:g} GB are allowed: it is too large or too narrow; crop it or make it"
            " smaller first"
        )
