"""What a piece of work costs, as a sum that can be added up."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_profiles.errors import LvlmError


@dataclass(frozen=True)
class Precision:
    """Element types of a model, their names and their bytes.

    Attributes:
        name: As the command line has it, ``fp16``.
        numpy_name: Of an activation, as numpy and a manifest have it, ``float16``.
        bits: Of a weight of the linear maps.
        block: Weights that share a scale of the activations' type; None where so many do that it
            does not count.
        tables: Bytes of a weight of the token table and the LM head.
        values: Bytes of an activation or a cached key or value.
        rate: Field of a device profile with the peak rate of its arithmetic.
    """

    name: str
    numpy_name: str
    bits: int
    block: int | None
    tables: int
    values: int
    rate: str

    @property
    def weights(self) -> float:
        """Bytes of a weight of the linear maps."""
        return self.weight_bytes(self.values)

    def weight_bytes(self, values: int) -> float:
        """The same where activations take ``values`` bytes, and scales with them."""
        return self.bits / 8 + (0 if self.block is None else values / self.block)

    @property
    def quantised(self) -> bool:
        """Weights take fewer bytes than activations."""
        return self.weights < self.values


PRECISIONS: dict[str, Precision] = {
    each.name: each
    for each in (
        Precision("fp32", "float32", 32, None, 4, 4, "fp32_tflops"),
        Precision("fp16", "float16", 16, None, 2, 2, "fp16_tflops"),
        Precision("bf16", "bfloat16", 16, None, 2, 2, "fp16_tflops"),
        Precision("int8", "float16", 8, None, 1, 2, "fp16_tflops"),
        Precision("int4", "float16", 4, 32, 1, 2, "fp16_tflops"),
    )
}


def precision_of(name: str) -> Precision:
    """By the command line's name or, where weights are of the same type, by numpy's.

    Raises:
        LvlmError: Unknown; lists the known ones.

    Example:
        >>> precision_of("fp16") == precision_of("float16")
        True
        >>> precision_of("bfloat16").values
        2
    """
    for each in PRECISIONS.values():
        if name == each.name or (name == each.numpy_name and not each.quantised):
            return each
    raise LvlmError(f"unknown precision {name!r}; known: {', '.join(PRECISIONS)}")


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
            LvlmError: Unknown precision.
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
