"""A picture for measurements without one: smooth colours with edges, the same every time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 480
NAME = f"made for the profile, {WIDTH}x{HEIGHT}"


def picture() -> NDArray[np.uint8]:
    """RGB ``[480, 640, 3]``."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red = 255 * x / WIDTH
    green = 255 * y / HEIGHT
    blue = 127 + 127 * np.sin(x / 23) * np.sin(y / 31)
    board = 40 * (((x // 80) + (y // 80)) % 2)
    pixels = np.stack((red, green, blue), axis=-1) - board[..., None]
    rgb: NDArray[np.uint8] = np.clip(pixels, 0, 255).astype(np.uint8)
    return rgb
