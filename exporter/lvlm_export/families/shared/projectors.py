"""Trained projectors that give fewer tokens than the tower has patches: QueCC and TokenPacker.

Both take the tower's features of several layers, side by side: queries are computed from the last
listed layer, keys and values from all layers together. Every query attends the cell of ``s x s``
patches that it stands for and nothing else. Tensor names after ``multi_modal_projector.`` are the
authors' after ``mm_projector.``. Shared METHODS §4 and §9.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_export.families import ProjectorShape
from lvlm_runtime.errors import LvlmError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Where a configuration names its projector, as the authors' repositories do.
KIND_KEYS = ("mm_vision_token_compression_type", "mm_projector_type", "projector_type")
KINDS = {"quecc": "quecc", "tokenpacker": "tokenpacker", "token-packer": "tokenpacker"}
HEADS = 8
EPSILON = 1e-6


def projector_kind(config: PretrainedConfig) -> str | None:
    """The kind of projector that a configuration names; None for the plain one.

    Raises:
        LvlmError: Token compression of a kind that is not supported.
    """
    for key in KIND_KEYS:
        named = getattr(config, key, None)
        if named in KINDS:
            return KINDS[named]
        if key == KIND_KEYS[0] and named is not None:
            raise LvlmError(f"{key} {named!r} is not supported; known: quecc, tokenpacker")
    return None


def refuse_projector(config: PretrainedConfig) -> None:
    """LvlmError for a trained projector, which a family with tiles does not have."""
    kind = projector_kind(config)
    if kind is not None:
        raise LvlmError(f"projector {kind} is not supported with tiles; its layout is llava's")


def projector_shape(config: PretrainedConfig) -> ProjectorShape | None:
    """Tokens, cells and layers of a trained projector; None for the plain one.

    Raises:
        LvlmError: Cells that do not fit the tower's grid, or layers that it does not have.
    """
    kind = projector_kind(config)
    if kind is None:
        return None
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    if kind == "quecc":
        cell = getattr(config, "mm_vision_token_compression_kernel_size", 4)
        stride = getattr(config, "mm_vision_token_compression_stride", cell)
        if stride != cell:
            raise LvlmError(
                f"projector quecc with kernel {cell} and stride {stride} is not supported; the two"
                " must be equal"
            )
    else:
        cell = getattr(config, "scale_factor", 2)
    if not isinstance(cell, int) or cell < 1 or side % cell:
        raise LvlmError(
            f"projector {kind} with cells of {cell} x {cell} does not fit the tower's"
            f" {side} x {side} patches; the edge must divide {side}"
        )
    if vision.hidden_size % HEADS:
        raise LvlmError(
            f"projector {kind} has {HEADS} heads, which do not divide the tower's width"
            f" {vision.hidden_size}"
        )
    return ProjectorShape(kind, (side // cell) ** 2, cell, _levels(config, kind), kind == "quecc")


def patch_maps(shape: ProjectorShape, width: int) -> tuple[tuple[int, int], ...]:
    """``(in, out)`` of the linear maps over every patch of a tower, for the cost model.

    ``width`` is the tower's. Maps over the few tokens of the result are left out.
    """
    keys = ((len(shape.levels) * width, width), (width, width), (width, width))
    queries = ((width, width), (width, width)) if shape.reads_text else ()
    return (*queries, *keys, *keys)


def _levels(config: PretrainedConfig, kind: str) -> tuple[int, ...]:
    """``vision_feature_layer`` as numbers of layers that ran (hidden_states' indices)."""
    wanted, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    layers = wanted if isinstance(wanted, list | tuple) else [wanted]
    levels = tuple(layer if layer >= 0 else depth + 1 + layer for layer in layers)
    if list(levels) != sorted(set(levels)) or not 0 < levels[0] <= levels[-1] <= depth:
        raise LvlmError(
            f"vision_feature_layer {wanted!r} does not fit projector {kind}: it takes ascending"
            f" layers of the tower's {depth}, the last one gives the queries"
        )
    return levels


def make_mlp(first: int, hidden: int, last: int) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(first, hidden), nn.GELU(), nn.Linear(hidden, last))


class QueCC(nn.Module):
    """Tokens that a question condenses a picture into.

    Source: arXiv:2411.03312; locuslab/llava-token-compression @bdedebdf, quecc.py:5-100.

    Args:
        width: C of the tower.
        levels: L, feature layers.
        text_width: D of the language model.
        side: Patches along a picture's edge.
        cell: s, patches along a cell's edge.
    """

    def __init__(self, width: int, levels: int, text_width: int, side: int, cell: int) -> None:
        super().__init__()
        self.side, self.cell = side, cell
        self.clip_attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.q_proj = nn.Sequential(*make_mlp(width, width, width), nn.LayerNorm(width, EPSILON))
        self.k_proj = nn.Sequential(
            *make_mlp(levels * width, width, width), nn.LayerNorm(width, EPSILON)
        )
        self.v_proj = nn.Sequential(
            *make_mlp(levels * width, width, width), nn.LayerNorm(width, EPSILON)
        )
        self.q_downsample = nn.Conv2d(width, width, cell, stride=cell, groups=width)
        self.text_projection = nn.Sequential(
            nn.Linear(text_width, width), nn.LayerNorm(width, EPSILON)
        )

    def forward(self, features: Tensor, query: Tensor, pictures: Tensor | None = None) -> Tensor:
        """``features [B, N, L*C]``, ``query [B or 1, 1, D]`` -> ``[B, N/s², C]``.

        With ``pictures [R]`` there are ``R`` queries about ``B`` pictures, and query ``r`` is about
        picture ``pictures[r]``: what does not depend on the question is computed once per picture.
        """
        width = self.clip_attn.embed_dim
        picture = features[..., -width:]
        keys = group_by_cell(self.k_proj(features), self.side, self.cell)
        values = group_by_cell(self.v_proj(features), self.side, self.cell)
        if pictures is not None:
            picture, keys, values = picture[pictures], keys[pictures], values[pictures]
        queries = picture + self.text_projection(query)
        # A depthwise convolution whose stride is its kernel is a weighted sum of each cell; written
        # as that sum, its gradient takes a tenth of the time.
        weight, bias = self.q_downsample.weight.flatten(1).T, self.q_downsample.bias
        assert bias is not None, "the convolution above has one"
        grid = group_by_cell(self.q_proj(queries), self.side, self.cell)
        queries = (grid * weight).sum(dim=2) + bias
        return attend_cells(self.clip_attn, queries, keys, values)


class QueccProjector(nn.Sequential):
    """QueCC and after it the plain projector's linear maps, under the authors' numbers."""

    def __init__(self, width: int, levels: int, text_width: int, side: int, cell: int) -> None:
        compressor = QueCC(width, levels, text_width, side, cell)
        super().__init__(compressor, *make_mlp(width, text_width, text_width))

    def forward(
        self, features: Tensor, query: Tensor | None = None, pictures: Tensor | None = None
    ) -> Tensor:
        """``features [B, N, L*C]``, ``query [B or 1, 1, D]`` -> ``[B, N/s², D]``; see ``QueCC``."""
        assert query is not None, "QueCC reads the question"
        hidden: Tensor = self[0](features, query, pictures)
        for module in list(self)[1:]:
            hidden = module(hidden)
        return hidden


class TokenPacker(nn.Module):
    """A coarse picture that takes in the fine one, cell by cell.

    Source: arXiv:2407.02392; CircleRadon/TokenPacker @771a16e7, builder.py:39-137.
    Arguments as ``QueCC``'s.
    """

    def __init__(self, width: int, levels: int, text_width: int, side: int, cell: int) -> None:
        super().__init__()
        self.side, self.cell = side, cell
        self.q_proj_1 = nn.Linear(width, width, bias=False)
        self.k_proj_1 = make_mlp(levels * width, width, width)
        self.v_proj_1 = make_mlp(levels * width, width, width)
        self.ln_q_1 = nn.LayerNorm(width, EPSILON)
        self.ln_k_1 = nn.LayerNorm(width, EPSILON)
        self.ln_v_1 = nn.LayerNorm(width, EPSILON)
        self.clip_attn = nn.MultiheadAttention(width, HEADS)
        self.mlp = make_mlp(width, text_width, text_width)

    def forward(self, features: Tensor, query: Tensor | None = None) -> Tensor:
        """``features [B, N, L*C]`` -> ``[B, N/s², D]``; the question is not read."""
        width = self.clip_attn.embed_dim
        coarse = shrink_grid(features[..., -width:], self.side, self.cell)
        keys = group_by_cell(self.ln_k_1(self.k_proj_1(features)), self.side, self.cell)
        values = group_by_cell(self.ln_v_1(self.v_proj_1(features)), self.side, self.cell)
        queries = self.ln_q_1(self.q_proj_1(coarse))
        projected: Tensor = self.mlp(attend_cells(self.clip_attn, queries, keys, values))
        return projected


def group_by_cell(tokens: Tensor, side: int, cell: int) -> Tensor:
    """Patches ``[B, side², C]`` by the cell they lie in: ``[B, (side/cell)², cell², C]``."""
    count = side // cell
    grid = tokens.reshape(-1, count, cell, count, cell, tokens.shape[-1])
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, count**2, cell**2, tokens.shape[-1])


def shrink_grid(tokens: Tensor, side: int, cell: int) -> Tensor:
    """Bilinear resize of ``[B, side², C]`` by 1/cell, no antialiasing: ``[B, (side/cell)², C]``.

    By a whole number it is the patch in the middle of each cell, or the mean of the four around the
    middle, which needs no Resize in the graph.
    """
    middle = group_by_cell(tokens, side, cell)
    around = sorted({(cell - 1) // 2, cell // 2})
    picked = [middle[:, :, row * cell + col] for row in around for col in around]
    mean: Tensor = torch.stack(picked).mean(dim=0)
    return mean


def attend_cells(attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query to each cell: ``[B, T, C]``, ``[B, T, S, C]`` twice -> ``[B, T, C]``.

    As ``attention``, an ``nn.MultiheadAttention``, does with a batch of B*T; in plain products,
    whose graph keeps its dynamic batch.
    """
    batch, count, width = queries.shape
    heads, dim = attention.num_heads, attention.head_dim
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    linear = nn.functional.linear
    query = linear(queries, weights[0], biases[0]).reshape(batch, count, 1, heads, dim)
    key = linear(keys, weights[1], biases[1]).reshape(batch, count, -1, heads, dim)
    value = linear(values, weights[2], biases[2]).reshape(batch, count, -1, heads, dim)
    logits = (query.float() * dim**-0.5 * key.float()).sum(dim=-1)
    share = torch.softmax(logits, dim=2).to(value.dtype).unsqueeze(-1)
    attended = (share * value).sum(dim=2).reshape(batch, count, width)
    out: Tensor = attention.out_proj(attended)
    return out


def make_projector(config: PretrainedConfig) -> nn.Module:
    """The module of a configuration that names a trained projector."""
    shape = projector_shape(config)
    assert shape is not None, "the plain projector is transformers' own"
    vision = config.vision_config
    kind = QueccProjector if shape.kind == "quecc" else TokenPacker
    return kind(
        vision.hidden_size,
        len(shape.levels),
        config.text_config.hidden_size,
        math.isqrt(shape.tokens) * shape.cell,
        shape.cell,
    )
