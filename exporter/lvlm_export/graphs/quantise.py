"""Weights of linear maps rounded to integers, and what they stand for.

Round to nearest, symmetric: ``scale = max |w| / largest`` over the weights that share it, ``q =
round(w / scale)``, and the weight is ``q * scale``. The scale has the type of the activations and is
rounded to it first, so that the graph and PyTorch multiply the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lvlm_export.families import Family
from lvlm_export.graphs.export import full_names
from lvlm_export.plan.weight_formats import FORMATS, PartFormats, WeightFormat

# Rows that are rounded at a time: a token table in float32 would be as large as the rest.
ROWS = 4096


def quantised_weights(model: nn.Module, family: Family, parts: PartFormats) -> dict[str, str]:
    """Name of a parameter of the whole model -> key in ``FORMATS``.

    All linear maps of the parts, and with the output projection the token table.
    """
    names, taken = full_names(model), family.parts(model)
    roots: dict[str, tuple[nn.Module, ...]] = {
        "vision": (taken.vision_embed, *taken.vision_layers, taken.project),
        "decoder": tuple(taken.text_layers),
        "lm_head": (taken.lm_head,),
    }
    found = {
        names[id(linear.weight)]: name
        for part, name in parts.named.items()
        for root in roots[part]
        for linear in root.modules()
        if isinstance(linear, nn.Linear)
    }
    if parts.lm_head is not None:
        found[family.embed_tokens] = parts.lm_head
    return found


def quantise(weight: Tensor, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A linear map ``[out, in]`` in a format.

    Args:
        weight: In any float type.
        name: Key in ``FORMATS``.
        dtype: Of the scales.

    Returns:
        int8 ``[out, in]``, and scales ``[out]`` or ``[out, blocks]``; the last block may be shorter.
    """
    format = FORMATS[name]
    pieces = [_round(rows, format, dtype) for rows in torch.split(weight, ROWS)]
    values, scales = (torch.cat(each) for each in zip(*pieces, strict=True))
    return values, scales if format.block is not None else scales[:, 0]


def dequantise(values: Tensor, scales: Tensor, name: str) -> Tensor:
    """The float32 weights ``[out, in]`` that the result of ``quantise`` in a format stands for."""
    block = FORMATS[name].block
    if block is None:
        return values.float() * scales.float()[:, None]
    return values.float() * scales.float().repeat_interleave(block, dim=1)[:, : values.shape[1]]


def round_weights(model: nn.Module, formats: Mapping[str, str], dtype: torch.dtype) -> None:
    """Put the weights that a bundle stands for in the place of a loaded model's own, one by one.

    Args:
        model: The whole model, in float32.
        formats: As of ``quantised_weights``.
        dtype: Of the scales.
    """
    for name, parameter in model.named_parameters():
        if name in formats:
            found = quantise(parameter.data, formats[name], dtype)
            parameter.data.copy_(dequantise(*found, formats[name]))


def pack_int4(values: Tensor) -> Tensor:
    """Integers of four bits, two to a byte and the first of them in its low half, as ONNX has them.

    Source: onnx/docs/docsgen/source/technical/int4.md, "Packing".
    """
    flat = values.contiguous().flatten()
    flat = nn.functional.pad(flat, (0, flat.numel() % 2)).to(torch.uint8).view(-1, 2)
    return (flat[:, 0] & 0x0F) | (flat[:, 1] << 4)


def _round(rows: Tensor, format: WeightFormat, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    inputs = rows.shape[1]
    block = inputs if format.block is None else format.block
    padded = nn.functional.pad(rows.float(), (0, -inputs % block))
    blocks = padded.view(len(rows), -1, block)
    scales = (blocks.abs().amax(dim=-1) / format.largest).to(dtype)
    # Where all weights are 0, or too small for the type of the scales.
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    rounded = (blocks / scales.float()[..., None]).round().clamp(-format.largest, format.largest)
    return rounded.to(torch.int8).flatten(1)[:, :inputs], scales
