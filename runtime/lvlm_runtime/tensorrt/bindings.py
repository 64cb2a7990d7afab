"""What an engine takes and gives, and which of its profiles a request fits. No driver call here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvlm_runtime.bundle.element_types import numpy_dtype
from lvlm_runtime.errors import LvlmError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Binding:
    """One input or output of an engine.

    Attributes:
        name: As in the graph.
        is_input: Else it is an output.
        dtype: Element type.
        dims: Shape, -1 where it is dynamic.
        ranges: Per profile the smallest, best and largest shape; empty for an output.
        alias: The input whose memory an output shares (a cache updated in place), or None.
    """

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    dims: Shape
    ranges: tuple[tuple[Shape, Shape, Shape], ...]
    alias: str | None = None


def read_bindings(trt: Any, engine: Any, label: str) -> tuple[Binding, ...]:
    """The bindings of a loaded engine, in its order.

    Raises:
        LvlmError: An element type that numpy does not have, or a tensor that lies on the host.
    """
    return tuple(
        _read(trt, engine, label, engine.get_tensor_name(i)) for i in range(engine.num_io_tensors)
    )


def _read(trt: Any, engine: Any, label: str, name: str) -> Binding:
    kind = engine.get_tensor_dtype(name)
    try:
        bfloat16 = kind == trt.DataType.BF16
        dtype = numpy_dtype("bfloat16") if bfloat16 else np.dtype(trt.nptype(kind))
    except TypeError:
        raise LvlmError(f"{label}, {name}: {kind} has no numpy type; build with fp16") from None
    if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
        raise LvlmError(f"{label}, {name} is a shape tensor on the host, which no graph here needs")
    is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
    dims = tuple(int(size) for size in engine.get_tensor_shape(name))
    ranges: tuple[tuple[Shape, Shape, Shape], ...] = ()
    alias = None
    if is_input:
        # A profile says nothing of an input whose shape is fixed.
        ranges = tuple(
            _triple(engine.get_tensor_profile_shape(name, profile))
            if -1 in dims
            else (dims, dims, dims)
            for profile in range(engine.num_optimization_profiles)
        )
    elif hasattr(engine, "get_aliased_input_tensor"):  # TensorRT-RTX, TensorRT from 10.15
        alias = engine.get_aliased_input_tensor(name) or None
    return Binding(name, is_input, dtype, dims, ranges, alias)


def _triple(shapes: Any) -> tuple[Shape, Shape, Shape]:
    low, best, high = (tuple(int(size) for size in each) for each in shapes)
    return low, best, high


def choose_profile(bindings: tuple[Binding, ...], shapes: Mapping[str, Shape], label: str) -> int:
    """The profile that takes these input shapes, the one whose best shape is nearest.

    Args:
        bindings: Of the engine.
        shapes: Input -> shape.
        label: The graph, for messages.

    Raises:
        LvlmError: No profile takes them; names the binding, its shape and what is taken.
    """
    inputs = [binding for binding in bindings if binding.is_input]
    count = max(len(binding.ranges) for binding in inputs)
    # The caches of all layers are alike; this runs for every token of the decomposed dialect.
    distinct = {(binding.ranges, shapes[binding.name]) for binding in inputs}
    fitting = {
        profile: sum(_distance(ranges[profile], shape) for ranges, shape in distinct)
        for profile in range(count)
        if all(_fits(ranges[profile], shape) for ranges, shape in distinct)
    }
    if fitting:
        return min(fitting, key=lambda profile: (fitting[profile], profile))
    raise LvlmError(_misfit(inputs, shapes, label))


def _fits(span: tuple[Shape, Shape, Shape], shape: Shape) -> bool:
    low, _, high = span
    return len(shape) == len(low) and all(
        least <= size <= most for least, size, most in zip(low, shape, high, strict=True)
    )


def _distance(span: tuple[Shape, Shape, Shape], shape: Shape) -> float:
    """Sum of the ratios, as logarithms, between a shape and a profile's best."""
    return sum(
        abs(math.log((size + 1) / (best + 1))) for size, best in zip(shape, span[1], strict=True)
    )


def _misfit(inputs: list[Binding], shapes: Mapping[str, Shape], label: str) -> str:
    for binding in inputs:
        shape = shapes[binding.name]
        if not any(_fits(span, shape) for span in binding.ranges):
            taken = "; ".join(sorted({_show(low, high) for low, _, high in binding.ranges}))
            return (
                f"{label}, {binding.name}: {_size(shape)} is outside of what the engine takes"
                f" ({taken}); build engines for larger requests: lvlm-export engines with"
                " --text-tokens, --answer-tokens or --images"
            )
    given = ", ".join(f"{name} {_size(shape)}" for name, shape in shapes.items())
    return f"{label}: no profile of the engine takes {given} together; build the engines again"


def _show(low: Shape, high: Shape) -> str:
    return _size(low) if low == high else f"{_size(low)} to {_size(high)}"


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape))
