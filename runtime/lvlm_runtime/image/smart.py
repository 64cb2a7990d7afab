"""The size that Qwen2-VL and its successors give a picture, from its own: integers in, integers out.

Source: transformers 5.23, ``smart_resize`` of ``models/qwen2_vl/image_processing_pil_qwen2_vl.py``.
"""

from __future__ import annotations

import math

from lvlm_runtime.errors import LvlmError

LARGEST_ASPECT = 200


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Height and width that are multiples of ``factor``, near the picture's own shape.

    Args:
        height: Pixels of the picture.
        width: Pixels of the picture.
        factor: Pixels along the edge of a token.
        min_pixels: A smaller picture is enlarged to them.
        max_pixels: A larger one is made smaller, down to them.

    Raises:
        LvlmError: The picture is empty or too narrow.

    Example:
        >>> smart_resize(720, 1280, 28, 56 * 56, 28 * 28 * 1280)
        (728, 1288)
    """
    if min(height, width) < 1 or max(height, width) / min(height, width) > LARGEST_ASPECT:
        raise LvlmError(
            f"a picture of {height}x{width} pixels (height x width) is too narrow for this model,"
            f" the longer side is at most {LARGEST_ASPECT} times the shorter; crop it"
        )
    rows, cols = round(height / factor) * factor, round(width / factor) * factor
    if rows * cols > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        cols = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * cols < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        cols = math.ceil(width * grow / factor) * factor
    return rows, cols
