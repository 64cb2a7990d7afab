"""In how many bits the weights of a model's parts are stored. Plain data, no torch.

Weights of linear maps are rounded to integers of few bits with one scale for several of them;
activations keep their type, and so do norms, biases, convolutions and position tables.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from lvlm_profiles.cost.units import PRECISIONS
from lvlm_runtime.errors import UsageError


@dataclass(frozen=True)
class WeightFormat:
    """How a linear map ``[out, in]`` is stored.

    Attributes:
        bits: Of a weight.
        block: Neighbouring inputs that share a scale; None where an output's weights all do.
    """

    bits: int
    block: int | None

    @property
    def largest(self) -> int:
        """Largest integer; the range is symmetric, so that there is no zero point."""
        return int(2 ** (self.bits - 1)) - 1


FORMATS = {"int8": WeightFormat(8, None), "int4": WeightFormat(4, 32)}
# What weights are stored as where nothing is rounded: the type of the activations.
FLOATS = tuple(name for name, each in PRECISIONS.items() if not each.quantised)


@dataclass(frozen=True)
class PartFormats:
    """Key in ``FORMATS`` for each part of a model, or None where its weights keep their type.

    Attributes:
        vision: Tower and plain projector; a trained projector keeps its type.
        decoder: The language model's layers.
        lm_head: Output projection and token table, which may be one tensor.
    """

    vision: str | None = None
    decoder: str | None = None
    lm_head: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """The parts that are rounded, as a manifest has them."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {part: name for part, name in pairs if name is not None}


UNROUNDED = PartFormats()
PARTS = tuple(field.name for field in fields(PartFormats))
# Rows of the token table are read one by one, so a scale belongs to a row.
ROW_FORMATS = tuple(name for name, each in FORMATS.items() if each.block is None)
# What ``--precision int4`` alone stands for, and so on. A tower of 4 bits gives features that lead to
# other tokens being kept, and in the demo to other answers; a decoder of 4 bits does not.
WHOLE = {
    "int8": PartFormats("int8", "int8", "int8"),
    "int4": PartFormats("int8", "int4", "int8"),
}


@dataclass(frozen=True)
class BuildPrecision:
    """What ``--precision`` says.

    Attributes:
        activations: One of ``FLOATS``, or None for the target's own.
        weights: What is stored in fewer bits.
    """

    activations: str | None
    weights: PartFormats


def parse_precision(text: str) -> BuildPrecision:
    """``fp16``, ``int4``, ``decoder=int4,lm_head=int8`` or ``fp32,int4,vision=int4``.

    A word without a part is the type of the activations, or the format of all parts.

    Raises:
        UsageError: A word that is none of these, or the same thing twice.

    Example:
        >>> parse_precision("int4").weights
        PartFormats(vision='int8', decoder='int4', lm_head='int8')
        >>> parse_precision("fp32,decoder=int4")
        BuildPrecision(activations='fp32', weights=PartFormats(vision=None, decoder='int4', lm_head=None))
    """
    activations, whole = None, None
    parts: dict[str, str] = {}
    for word in text.split(","):
        part, equals, name = word.partition("=")
        if word in FLOATS and activations is None:
            activations = word
        elif word in WHOLE and whole is None:
            whole = word
        elif equals and part in PARTS and name in FORMATS and part not in parts:
            if part == "lm_head" and name not in ROW_FORMATS:
                raise UsageError(
                    f"--precision {word} cannot be: rows of the token table are read one by one;"
                    f" take lm_head={ROW_FORMATS[0]}"
                )
            parts[part] = name
        else:
            raise UsageError(
                f"--precision {text}: {word!r} is given twice or not known; give one of"
                f" {', '.join(FLOATS)} for activations, {' or '.join(WHOLE)} for all weights,"
                f" PART={'|'.join(FORMATS)} for those of {', '.join(PARTS)}"
            )
    given = UNROUNDED if whole is None else WHOLE[whole]
    return BuildPrecision(activations, PartFormats(**{**given.named, **parts}))
