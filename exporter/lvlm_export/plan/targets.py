"""What a bundle can be built for. Plain data, so that listing it costs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_profiles.cost.units import PRECISIONS


@dataclass(frozen=True)
class Target:
    """Where a bundle is to run.

    Attributes:
        precision: Element type of weights and activations unless ``--precision`` is given.
        dialect: Key in ``DIALECTS`` unless ``--dialect`` is given.
        gate: Key in ``lvlm_runtime.graphs.operators.PARSERS`` of the parser that must take every
            graph, the oldest that the target has; None where no NVIDIA parser reads the graphs.
        summary: One line for ``lvlm-export list targets``.
    """

    precision: str
    dialect: str
    gate: str | None
    summary: str


# What a bundle can be built at.
BUNDLE_PRECISIONS = tuple(name for name, each in PRECISIONS.items() if not each.quantised)
# ONNX Runtime has no bfloat16 kernels on a CPU and takes no such arrays from Python.
BFLOAT16_TARGETS = ("rtx", "trt")
# Sets of operators that a bundle's graphs may use, each with one line of description.
DIALECTS = {
    "opset24": "Attention over a cache that TensorScatter writes",
    "decomposed": "plain MatMul and Softmax, opset 20",
}
TARGETS = {
    "cpu": Target("fp32", "opset24", None, "ONNX Runtime on a CPU"),
    "cuda": Target("fp16", "opset24", None, "ONNX Runtime on an NVIDIA GPU"),
    "rtx": Target(
        "fp16",
        "opset24",
        "rtx",
        "TensorRT-RTX engines, built without a GPU",
    ),
    # No TensorRT takes Attention with a filled length (operators.py): it gets the plain dialect.
    "trt": Target("fp16", "decomposed", "trt-10.3", "TensorRT engines, built on the Jetson"),
}
