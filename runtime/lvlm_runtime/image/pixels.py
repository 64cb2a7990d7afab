"""What preprocessing does to pixels, each step as transformers 5.23's PIL image processors do it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def center_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Cut ``[3, H, W]`` to ``[3, height, width]``, with black where it is smaller."""
    _, old_height, old_width = pixels.shape
    # As transformers: the border is put on first, its odd pixel above and to the left.
    above, left = max(0, height - old_height + 1) // 2, max(0, width - old_width + 1) // 2
    if above or left:
        larger = np.zeros((3, max(height, old_height), max(width, old_width)), pixels.dtype)
        larger[:, above : above + old_height, left : left + old_width] = pixels
        pixels = larger
    top = (old_height - height) // 2 + above
    start = (old_width - width) // 2 + left
    return pixels[:, top : top + height, start : start + width]


def square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The picture in the middle of a square of its longer edge."""
    edge = max(image.height, image.width)
    return pad(image, edge, edge, colour)


def pad(image: Image.Image, height: int, width: int, colour: tuple[int, int, int]) -> Image.Image:
    """The picture in the middle of a larger one; an odd pixel goes below or to the right."""
    if (image.height, image.width) == (height, width):
        return image
    padded = Image.new("RGB", (width, height), colour)
    padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return padded


def resize(image: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """The picture at another size; Pillow gives a plain copy where the size is the same."""
    return image.resize((width, height), Image.Resampling(resample))


def normalise(
    pixels: NDArray[np.uint8],
    rescale_factor: float | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> NDArray[np.float32]:
    """Rescale and normalise ``[N, 3, H, W]``.

    A value has 256 possible results per channel, so they are looked up in a table: the arithmetic
    is that of transformers (float64 product, then float32), done for 256 values only.
    """
    values = np.arange(256, dtype=np.float64)
    if rescale_factor is not None:
        values = values * rescale_factor
    table = np.tile(values.astype(np.float32), (3, 1))
    if mean is not None and std is not None:
        centred = table - np.array(mean, dtype=np.float32)[:, None]
        table = centred / np.array(std, dtype=np.float32)[:, None]
    result = np.empty(pixels.shape, dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], pixels[:, channel], out=result[:, channel])
    return result
