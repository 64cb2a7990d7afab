"""Rows about quantised weights, wherever a checkpoint says that its weights are."""

from __future__ import annotations

from pathlib import Path

import torch

from traits import Trait, edit_json, edit_weights, trait, write_json
from traits.outcomes import refused, same_weights

LAYER = "language_model.model.layers.0.mlp.up_proj"


def said_in(place: str) -> Trait:
    """A row whose config.json says so under a dotted name."""

    def write(directory: Path) -> None:
        value = {"quant_method": "awq", "bits": 4}
        edit_json(directory / "config.json", **{place.replace(".", "__"): value})

    write.__doc__ = f"{place} in config.json"
    return Trait(
        write, refused(rf"holds quantised weights \({place} of config\.json\)"), "llava", False
    )


quantised_at_the_top = said_in("quantization_config")
quantised_in_the_text_part = said_in("text_config.quantization_config")
quantised_in_the_tower = said_in("vision_config.quantization_config")
quantised_by_compressed_tensors = said_in("compression_config")
quantised_by_mlx = said_in("quantization")


def said_by(file: str) -> Trait:
    """A row with a quantiser's own file."""

    def write(directory: Path) -> None:
        write_json(directory / file, {"bits": 4, "group_size": 128})

    write.__doc__ = f"a {file}"
    return Trait(write, refused(rf"holds quantised weights \({file}\)"), "llava", False)


quantised_by_gptq = said_by("quantize_config.json")
quantised_by_awq = said_by("quant_config.json")
quantised_by_model_optimizer = said_by("hf_quant_config.json")


def packed(match: str, **tensors: torch.Tensor) -> Trait:
    """A row that says it in the headers alone; ``weight`` is one of the tensors of a layer."""

    def write(directory: Path) -> None:
        def change(weights: dict[str, torch.Tensor]) -> None:
            del weights[f"{LAYER}.weight"]
            for name, tensor in tensors.items():
                weights[f"{LAYER}.{name.replace('__', '.')}"] = tensor

        edit_weights(directory, change)

    write.__doc__ = f"a layer stored as {', '.join(tensors)}"
    return Trait(write, refused(match), "llava", False)


WORDS, BYTES = torch.zeros(6, 96, dtype=torch.int32), torch.zeros(96, 48, dtype=torch.int8)
packed_by_gptq = packed(
    r"holds quantised weights \(tensor .*\.(qweight|scales)\)",
    qweight=WORDS,
    scales=torch.ones(1, 96),
)
packed_by_compressed_tensors = packed(
    r"holds quantised weights \(tensor .*weight_packed\)", weight_packed=WORDS
)
packed_by_bitsandbytes_8 = packed(
    r"holds quantised weights \(tensor .*\.SCB\)|as I8, which is quantised",
    weight=BYTES,
    SCB=torch.ones(96),
)
packed_by_bitsandbytes_4 = packed(
    r"as U8, which is quantised|absmax", weight=BYTES.to(torch.uint8), weight__absmax=torch.ones(72)
)
packed_as_fp8 = packed(
    r"as F8_E4M3, which is quantised", weight=torch.zeros(96, 48, dtype=torch.float8_e4m3fn)
)


@trait(refused(r"as I64, which is quantised"))
def weights_as_whole_numbers(directory: Path) -> None:
    """A tensor of an element type that no weight has."""
    edit_weights(
        directory, lambda weights: weights.update({f"{LAYER}.weight": torch.zeros(96, 48).long()})
    )


@trait(same_weights)
def quantised_by_nobody(directory: Path) -> None:
    """The key of a quantiser with nothing in it."""
    edit_json(directory / "config.json", quantization_config=None)


@trait(refused(r"holds quantised weights \(text_config\.quantization_config of config\.json\)"))
def quantised_in_a_way_that_nobody_knows(directory: Path) -> None:
    """The key of a quantiser with an empty object, which transformers does not read either."""
    edit_json(directory / "config.json", text_config__quantization_config={})
