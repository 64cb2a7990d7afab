"""Element types of tensors by numpy's names, which a manifest has, as torch and ONNX call them."""

from __future__ import annotations

import onnx_ir as ir
import torch

from lvlm_profiles.cost.units import precision_of

_TYPES: dict[str, tuple[torch.dtype, ir.DataType]] = {
    "float32": (torch.float32, ir.DataType.FLOAT),
    "float16": (torch.float16, ir.DataType.FLOAT16),
    "bfloat16": (torch.bfloat16, ir.DataType.BFLOAT16),
    "int64": (torch.int64, ir.DataType.INT64),
    "int32": (torch.int32, ir.DataType.INT32),
    "int8": (torch.int8, ir.DataType.INT8),
    "uint8": (torch.uint8, ir.DataType.UINT8),
}
# Two to a byte; torch has no tensors of it.
INT4 = "int4"
_NAMES = {dtype: name for name, (dtype, _) in _TYPES.items()}


def torch_dtype(precision: str) -> torch.dtype:
    """Of weights and activations at a precision, ``fp16`` or ``float16``.

    Raises:
        LvlmError: Unknown precision.
    """
    return _TYPES[precision_of(precision).numpy_name][0]


def onnx_dtype(name: str) -> ir.DataType:
    """Of a stored tensor by numpy's name."""
    return ir.DataType.INT4 if name == INT4 else _TYPES[name][1]


def numpy_name(dtype: torch.dtype) -> str:
    """What a manifest calls a tensor's element type."""
    return _NAMES[dtype]
