"""What a piece of work costs, as a sum that can be added up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """Bytes per element.

    Attributes:
        weights: Of a weight; 4-bit weights carry one fp16 scale per block of 128.
        values: Of an activation or a cached key or value.
        rate: Field of a device profile with the peak rate of its arithmetic.
    """

    weights: float
    values: int
    rate: str


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(4, 4, "fp32_tflops"),
    "fp16": Precision(2, 2, "fp16_tflops"),
    "bf16": Precision(2, 2, "fp16_tflops"),
    "int8": Precision(1, 2, "fp16_tflops"),
    "int4": Precision(0.5 + 2 / 128, 2, "fp16_tflops"),
}
# numpy's names, as a manifest has them.
ALIASES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def precision_of(name: str) -> Precision:
    """By the command line's name or numpy's.

    Raises:
        ValueError: Unknown; lists the known ones.
    """
    known = PRECISIONS.get(ALIASES.get(name, name))
    if known is None:
        raise ValueError(f"unknown precision {name!r}; known: {', '.join(PRECISIONS)}")
    return known


@dataclass(frozen=True)
class Amount:
    """Arithmetic and traffic of some work.

    Attributes:
        flops: Multiplications and additions, each counted.
        weights: Weight elements read.
        activations: Elements read and written beside weights and cache.
        kv_read: Cache elements read.
        kv_written: Cache elements written.
    """

    flops: int = 0
    weights: int = 0
    activations: int = 0
    kv_read: int = 0
    kv_written: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.flops + other.flops,
            self.weights + other.weights,
            self.activations + other.activations,
            self.kv_read + other.kv_read,
            self.kv_written + other.kv_written,
        )

    def times(self, count: int) -> Amount:
        """The same work ``count`` times, each with weights of its own."""
        return Amount(
            count * self.flops,
            count * self.weights,
            count * self.activations,
            count * self.kv_read,
            count * self.kv_written,
        )

    def size_bytes(self, precision: str) -> float:
        """All traffic at a precision.

        Raises:
            ValueError: Unknown precision.
        """
        sizes = precision_of(precision)
        values = self.activations + self.kv_read + self.kv_written
        return self.weights * sizes.weights + values * sizes.values


def linear(rows: int, wide: int, narrow: int) -> Amount:
    """A linear map of ``rows`` rows from ``wide`` to ``narrow`` elements."""
    return Amount(2 * rows * wide * narrow, wide * narrow, rows * (wide + narrow))


def moved_only(elements: int) -> Amount:
    """Elements that are read or written and no arithmetic."""
    return Amount(activations=elements)
