"""Backgrounds of scenes: crops of photographs, value noise, stripes and gradients.

Everything is integer arithmetic on decoded PNG files, so that a seed gives the same pixels with every
processor and every version of numpy and Pillow.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image

from lvlm_export.demo import PHOTOS

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

PHOTO_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("coffee", "hubble_deep_field", "raccoon", "rocket"),
    "test": ("camera", "chelsea", "coins"),
}
"""Which photographs a split's backgrounds are cut from; none is in both."""

_SMALLEST_CROP = 72  # pixels of a photograph's 320
_NOISE_CELLS = (3, 6, 12, 28, 56)
_ONE = 256  # fixed point: this stands for 1


def make_background(rng: np.random.Generator, split: Split, size: int) -> np.ndarray:
    """Draw a background: half are photographs, the rest noise, stripes or a gradient.

    It is paler and flatter than objects are, so that these stand out of it and it still varies.

    Args:
        rng: Where all choices come from.
        split: Whose photographs to use.
        size: Width and height in pixels.

    Returns:
        int32 ``[size, size, 3]``, around the middle of 0..255; some values may lie outside.
    """
    kind = rng.integers(20)
    if kind < 10:
        canvas = _photo(rng, split, size)
    elif kind < 14:
        canvas = _noise(rng, size)
    elif kind < 17:
        canvas = _stripes(rng, size)
    else:
        canvas = _stretched(rng.integers(30, 226, (2, 2, 3), np.int32), size)
    return _toned(canvas, rng)


def _toned(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Less colour, less contrast, and a mean from 90 to 165."""
    saturation, contrast, level = rng.integers((40, 100, 90), (181, 231, 166), dtype=np.int32)
    gray = ((canvas[..., 0] + canvas[..., 1] + canvas[..., 2]) // 3)[..., None]
    canvas = gray + saturation * (canvas - gray) // _ONE
    pixels = canvas.reshape(-1, 3)
    mean = np.array([int(pixels[:, c].sum()) // len(pixels) for c in range(3)], np.int32)
    tint = (mean - mean.sum(dtype=np.int32) // 3) // 2
    toned: np.ndarray = contrast * (canvas - mean) // _ONE + (tint + level)
    return toned


@cache
def _photos(split: Split) -> tuple[np.ndarray, ...]:
    photos = []
    for name in PHOTO_NAMES[split]:
        with Image.open(PHOTOS / f"{name}.png") as image:
            photos.append(np.asarray(image.convert("RGB")).astype(np.int32))
    return tuple(photos)


def _photo(rng: np.random.Generator, split: Split, size: int) -> np.ndarray:
    photos = _photos(split)
    photo = photos[rng.integers(len(photos))]
    height, width = photo.shape[:2]
    edge = int(rng.integers(_SMALLEST_CROP, min(height, width), endpoint=True))
    x, y = rng.integers(width - edge + 1), rng.integers(height - edge + 1)
    canvas = _stretched(photo[y : y + edge, x : x + edge], size)
    return canvas[:, ::-1].copy() if rng.integers(2) else canvas


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Sum of random grids of five finenesses, each smoothly stretched."""
    canvas = np.full((size, size, 3), 128, np.int32)
    for cells in _NOISE_CELLS:
        grid = rng.integers(-128, 129, (cells, cells, 3), np.int32)
        strength = rng.integers(0, 160, dtype=np.int32)
        canvas += strength * _stretched(grid, size) // _ONE
    return canvas


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """A triangle wave or hard stripes of two colours, in any direction, 6 to 40 pixels wide."""
    y, x = np.mgrid[:size, :size].astype(np.int32)
    while True:
        across, down = (int(part) for part in rng.integers(-32, 33, 2))
        length = math.isqrt(across**2 + down**2)
        if length >= 16:
            break
    period = length * int(rng.integers(6, 41))
    phase = int(rng.integers(period))
    wave = np.abs(2 * ((across * x + down * y + phase) % period) - period) * _ONE // period
    if rng.integers(2):
        wave = np.where(2 * wave >= _ONE, _ONE, 0)
    first, second = rng.integers(40, 216, (2, 3), np.int32)
    stripes: np.ndarray = first + (second - first) * wave[..., None] // _ONE
    return stripes


def _stretched(grid: np.ndarray, size: int) -> np.ndarray:
    """Square grid of integers ``[N, N, 3]`` in -256..255, bilinearly stretched to ``[size, size, 3]``."""
    cells = len(grid)
    middles = (2 * np.arange(size, dtype=np.int32) + 1) * (cells * _ONE) // (2 * size) - _ONE // 2
    at = np.clip(middles, 0, (cells - 1) * _ONE)
    first, part = at // _ONE, at % _ONE
    second = np.minimum(first + 1, cells - 1)
    rows = grid[first] * (_ONE - part)[:, None, None] + grid[second] * part[:, None, None]
    columns = rows[:, first] * (_ONE - part)[:, None] + rows[:, second] * part[:, None]
    stretched: np.ndarray = columns // _ONE**2
    return stretched
