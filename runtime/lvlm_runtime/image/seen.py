"""Pixels back to a picture: what a model saw of one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_runtime.image.preprocess import PreprocessSpec


def seen_picture(pixels: NDArray[np.float32], spec: PreprocessSpec) -> Image.Image:
    """The picture that ``pixels [3, H, W]`` were computed from, at the model's size."""
    values = pixels.transpose(1, 2, 0)
    if spec.std is not None:
        values = values * np.array(spec.std, np.float32)
    if spec.mean is not None:
        values = values + np.array(spec.mean, np.float32)
    if spec.rescale_factor is not None:
        values = values / spec.rescale_factor
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
