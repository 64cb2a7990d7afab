"""Reading a picture that a user names: upright RGB, or an error of one line that says why not."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lvlm_runtime.errors import LvlmError

MAX_PICTURE_PIXELS = 64_000_000
"""The largest picture that is decoded; three bytes each in memory."""

# Named, because Pillow would otherwise run Ghostscript on an EPS file.
PICTURE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
PICTURE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV")


def load_image(source: str | Path | bytes | Image.Image | NDArray[np.uint8]) -> Image.Image:
    """Read a picture as RGB, upright, as ``load_image`` of transformers does.

    The EXIF orientation is applied; transparency is dropped, so the colours under it show; an
    animation gives its first frame.

    Args:
        source: Path, encoded bytes, Pillow picture or uint8 array ``[H, W]`` or ``[H, W, 1|3|4]``.

    Raises:
        LvlmError: No such file, not a picture, damaged, too large or of a mode (16 bit) that
            would lose its content in 8 bits.
    """
    if isinstance(source, np.ndarray):
        return _upright_rgb(_from_array(source), "the array")
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "the picture")
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"the picture of {len(source)} bytes")
    path = Path(source)
    if path.is_dir():
        raise LvlmError(f"{path} is a directory, a picture file is needed; name one file in it")
    if not path.is_file():
        raise LvlmError(f"no picture file at {path}; check the path")
    try:
        with path.open("rb") as file:
            return _decode(file, str(path))
    except PermissionError as error:
        raise LvlmError(f"{path} may not be read: {error.strerror}; check its rights") from error


def _decode(file: BinaryIO, name: str) -> Image.Image:
    """Read an encoded picture; its size is known and checked before its pixels are decoded."""
    Image.init()
    formats = [known for known in PICTURE_FORMATS if known in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures while it opens them: they are refused here instead.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        raise LvlmError(
            f"{name} is not a picture in a known format ({', '.join(formats)}), or its beginning "
            "is damaged; convert it to PNG or JPEG"
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(name, pixels[1] if pixels else "too many") from error
    except Exception as error:  # Pillow's readers may raise anything for a damaged header
        raise _damaged(name, error) from error
    with image:
        return _upright_rgb(image, name)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """Check size and mode, decode, turn and convert."""
    pixels = image.width * image.height
    if pixels > MAX_PICTURE_PIXELS:
        raise _too_large(name, str(pixels))
    if image.mode not in PICTURE_MODES:
        raise LvlmError(
            f"{name} has Pillow mode {image.mode!r} (16 or 32 bits a value, or a rare colour "
            f"space), which 8-bit RGB cannot hold; allowed are {', '.join(PICTURE_MODES)}: convert "
            "it to 8-bit RGB first"
        )
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow's decoders may raise anything for damaged data
        raise _damaged(name, error) from error


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    """A Pillow picture of a uint8 array, channels last."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise LvlmError(
            f"a picture array is {array.dtype} {list(array.shape)}; give uint8 [H, W], [H, W, 1], "
            "[H, W, 3] or [H, W, 4], channels last"
        )
    if array.size == 0:
        raise LvlmError(f"a picture array of {list(array.shape)} is empty; give one with pixels")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def _too_large(name: str, pixels: str) -> LvlmError:
    return LvlmError(
        f"{name} has {pixels} pixels, at most {MAX_PICTURE_PIXELS} are decoded; make it smaller"
    )


def _damaged(name: str, error: Exception) -> LvlmError:
    return LvlmError(
        f"{name} is a damaged or truncated picture ({' '.join(str(error).split())}); save it again"
    )
