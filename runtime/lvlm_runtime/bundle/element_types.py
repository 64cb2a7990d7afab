"""Element types by name. numpy has no bfloat16; ``ml_dtypes`` adds it, where a bundle needs it."""

from __future__ import annotations

from typing import Any

import numpy as np

from lvlm_runtime.errors import LvlmError


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type of a manifest's element type.

    Raises:
        LvlmError: bfloat16 without ``ml_dtypes``.
    """
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise LvlmError(
            "this bundle is bfloat16, which numpy does not have; pip install ml_dtypes"
        ) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
