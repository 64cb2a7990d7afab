"""What a bundle can be built for. Plain data, so that listing it costs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Where a bundle is to run.

    Attributes:
        precision: Element type of weights and activations unless ``--precision`` says else.
        summary: One line for ``lvlm-export list targets``.
    """

    precision: str
    summary: str


PRECISIONS = ("fp32", "fp16")
TARGETS = {
    "cpu": Target("fp32", "ONNX Runtime on a CPU"),
    "cuda": Target("fp16", "ONNX Runtime on an NVIDIA GPU"),
    "rtx": Target("fp16", "TensorRT-RTX engines, built without a GPU"),
}
