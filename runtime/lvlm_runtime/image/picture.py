"""Reading a picture that a user names: upright RGB, or an error of one line that says why not."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import memory
from lvlm_runtime.image.metadata import without_metadata

# A text is a path or a data URL.
Picture = str | Path | bytes | io.BytesIO | Image.Image | NDArray[np.uint8]
T = TypeVar("T")

# Named, because Pillow would otherwise run Ghostscript on an EPS file. TGA has no signature, so it
# is tried last.
PICTURE_FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA"),
)
PICTURE_MODES = (
    *("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"),
)
# EXIF's orientation, tag 0x0112 (EXIF 3.0, 4.6.5), as the way to turn a picture upright.
ORIENTATION = 0x0112
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

SIDEWAYS = {
    *(Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270),
    *(Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90),
}


def load_image(source: Picture) -> Image.Image:
    """Read a picture as RGB, upright, as ``load_image`` of transformers does.

    The EXIF orientation is applied; transparency is dropped, so the colours under it show; an
    animation gives its first frame. Where EXIF, profiles or texts are damaged or longer than Pillow
    reads, the pixels are read without them.

    Args:
        source: Path, data URL, encoded bytes, Pillow picture or uint8 array ``[H, W]`` or
            ``[H, W, 1|3|4]``.

    Raises:
        LvlmError: No such file, an address in the network, not a picture, damaged, too large or of a mode (16 bit) that
            would lose its content in 8 bits.
    """
    return _read(source, _upright_rgb)


def picture_size(source: Picture) -> tuple[int, int]:
    """(height, width) in pixels as they are stored, before the picture is decoded or turned.

    Raises:
        LvlmError: As of ``load_image``, where the beginning of the file shows it.
    """
    return _read(source, lambda image, _: (image.height, image.width))


def upright_size(source: Picture) -> tuple[int, int]:
    """(height, width) in pixels of what ``load_image`` gives.

    Raises:
        LvlmError: As of ``load_image``.
    """
    return _read(source, _upright_size)


def opened(source: Picture) -> Path | bytes | Image.Image | NDArray[np.uint8]:
    """A picture with its bytes where it has them: a data URL is decoded, a ``BytesIO`` read.

    Raises:
        LvlmError: A damaged data URL, or an address: nothing is fetched.

    Example:
        >>> opened("data:text/plain;base64,aGVsbG8="), opened("cat.jpg")
        (b'hello', PosixPath('cat.jpg'))
    """
    if isinstance(source, io.BytesIO):
        return source.getvalue()
    if not isinstance(source, str):
        return source
    if re.match(r"data:", source, re.IGNORECASE):
        return _data_url(source)
    if re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE):
        raise LvlmError(
            f"{source[:80]} is an address, and a picture is never fetched: who asks could make this"
            " machine open it; download it and give its path, its bytes or a data URL"
        )
    return Path(source)


def _data_url(url: str) -> bytes:
    """The content of ``data:…;base64,…``. Source: RFC 2397."""
    head, comma, content = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise LvlmError(
            f"{url[:40]!r}… is a data URL of another form; give data:image/png;base64,… (or jpeg)"
        )
    try:
        return base64.b64decode(b"".join(unquote_to_bytes(content).split()), validate=True)
    except binascii.Error as error:
        raise LvlmError(
            f"a data URL of {len(content)} characters is no base64 ({error}); encode it again"
        ) from None


def _read(source: Picture, finish: Callable[[Image.Image, str], T]) -> T:
    """What ``finish`` makes of an opened picture and its name in messages."""
    source = opened(source)
    if isinstance(source, np.ndarray):
        return _checked(_from_array(source), "the array", finish)
    if isinstance(source, Image.Image):
        return _checked(source, "the picture", finish)
    if isinstance(source, bytes):
        return _read_file(io.BytesIO(source), f"the picture of {len(source)} bytes", finish)
    path = source
    if path.is_dir():
        raise LvlmError(f"{path} is a directory, a picture file is needed; name one file in it")
    if not path.is_file():
        raise LvlmError(f"no picture file at {path}; check the path")
    try:
        with path.open("rb") as file:
            return _read_file(file, str(path), finish)
    except PermissionError as error:
        raise LvlmError(f"{path} may not be read: {error.strerror}; check its rights") from error


def _read_file(file: BinaryIO, name: str, finish: Callable[[Image.Image, str], T]) -> T:
    """Read an encoded picture, once more without its metadata where Pillow fails at it."""
    size = file.seek(0, os.SEEK_END)
    if size > memory.MAX_BYTES:
        raise LvlmError(
            f"{name} is a file of {size} bytes, at most {memory.MAX_BYTES} are read; make it smaller"
        )
    file.seek(0)
    done, first = _try(file, name, finish)
    if first is None:
        return done[0]
    file.seek(0)
    plain = without_metadata(file, memory.MAX_BYTES)
    if plain is not None:
        done, again = _try(plain, name, finish)
        if again is None:
            return done[0]
    if isinstance(first, UnidentifiedImageError):
        raise LvlmError(
            f"{name} is not a picture in a known format ({', '.join(_formats())}), or its beginning "
            "is damaged; convert it to PNG or JPEG"
        ) from first
    reason = " ".join(str(first).split()) or type(first).__name__
    raise LvlmError(
        f"{name} is a damaged or truncated picture ({reason}); save it again"
    ) from first


def _try(
    file: BinaryIO, name: str, finish: Callable[[Image.Image, str], T]
) -> tuple[tuple[T, ...], Exception | None]:
    """What ``finish`` makes of a file, or why Pillow cannot read it; LvlmError where it must not."""
    try:
        with warnings.catch_warnings():
            # Of odd metadata, and of half of what Pillow refuses: the bound in bytes is below that.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_formats()) as image:
                return (_checked(image, name, finish),), None
    except LvlmError:
        raise
    except Image.DecompressionBombError as error:
        raise LvlmError(
            f"{name} is larger than Pillow decodes ({' '.join(str(error).split())}); make it smaller"
        ) from error
    except Exception as error:  # Pillow's readers may raise anything for a damaged file
        return (), error


def _formats() -> list[str]:
    Image.init()
    return [known for known in PICTURE_FORMATS if known in Image.OPEN]


def _checked(image: Image.Image, name: str, finish: Callable[[Image.Image, str], T]) -> T:
    """Refuse a picture by its size and mode, before it is decoded."""
    pixels, each = image.width * image.height, memory.decode_bytes(1, 1, image.format)
    if pixels * each > memory.MAX_BYTES:
        raise LvlmError(
            f"{name} has {pixels} pixels, at most {memory.MAX_BYTES // each} are decoded; make it"
            " smaller"
        )
    if image.mode not in PICTURE_MODES:
        raise LvlmError(
            f"{name} has Pillow mode {image.mode!r} (16 or 32 bits a value, or a rare colour "
            f"space), which 8-bit RGB cannot hold; allowed are {', '.join(PICTURE_MODES)}: convert "
            "it to 8-bit RGB first"
        )
    return finish(image, name)


def _upright_rgb(image: Image.Image, _name: str) -> Image.Image:
    """Decode, turn and convert; what is turned says so no more, or it would be turned again."""
    image.load()
    method = TURNED.get(_orientation(image))
    if method is None:
        if type(image) is Image.Image and image.mode == "RGB" and not image.info:
            return image
        rgb = image.convert("RGB")
    else:
        turned = image.transpose(method)
        rgb = turned if turned.mode == "RGB" else turned.convert("RGB")
    rgb.info = {}
    return rgb


def _upright_size(image: Image.Image, _name: str) -> tuple[int, int]:
    if image.format == "PNG":
        image.load()  # A PNG may say behind its pixels which side is up.
    if TURNED.get(_orientation(image)) in SIDEWAYS:
        return image.width, image.height
    return image.height, image.width


def _orientation(image: Image.Image) -> int:
    """Which side is up, 1 where the picture does not say so in a form that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow's reader of EXIF and XMP may raise anything for damaged content
        return 1


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
