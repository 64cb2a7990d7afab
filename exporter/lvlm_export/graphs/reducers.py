"""Reducers as graphs: the module of a site and a budget, its example inputs and signature."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_export.graphs.export import Signature, example
from lvlm_export.plan.plan import Plan
from lvlm_export.reduction.budget import SiteCount
from lvlm_export.reduction.method import ReducerShape
from lvlm_export.reduction.reducers import (
    DecoderReducer,
    PixelReducer,
    ProjectedReducer,
    VisionReducer,
)

Reducer = PixelReducer | VisionReducer | ProjectedReducer | DecoderReducer


def make_reducer(plan: Plan, count: SiteCount) -> Reducer:
    """The module that reduces at a site of a plan."""
    vision, text = plan.shape.vision, plan.shape.text
    before = count.site.stage in ("vision", "features")
    shape = ReducerShape(
        count.tokens_in,
        count.tokens_out,
        vision.prefix if before else 0,
        vision.scale if before else text.scale,
        plan.options.seed,
    )
    selector = plan.method.selector(count.site, shape)
    if count.site.stage == "pixels":
        return PixelReducer(shape, selector)
    if before:
        return VisionReducer(shape, selector)
    if count.site.stage == "projected":
        return ProjectedReducer(shape, selector)
    return DecoderReducer(shape, selector)


def reducer_inputs(
    plan: Plan, reducer: Reducer, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], Signature]:
    """Example inputs of a reducer, and its names and dynamic axes."""
    if isinstance(reducer, PixelReducer):
        arguments, axes = _pixels(plan, dtype)
    elif isinstance(reducer, VisionReducer):
        arguments, axes = _vision(plan, reducer.shape, dtype)
    elif isinstance(reducer, ProjectedReducer):
        arguments, axes = _projected(plan, reducer.shape, dtype)
    else:
        arguments, axes = _decoder(plan, reducer.shape, dtype)
    used = len(reducer.inputs)
    return arguments[:used], Signature(reducer.inputs, reducer.outputs, axes[:used])


Inputs = tuple[tuple[Tensor, ...], tuple[dict[int, torch.export.Dim], ...]]


def _pixels(plan: Plan, dtype: torch.dtype) -> Inputs:
    edge = plan.shape.vision.image_size
    tiles = torch.export.Dim("tiles", min=1, max=4096)
    return (example((2, 3, edge, edge), dtype),), ({0: tiles},)


def _vision(plan: Plan, shape: ReducerShape, dtype: torch.dtype) -> Inputs:
    vision = plan.shape.vision
    heads, dim = vision.heads, vision.hidden_size // vision.heads
    total = shape.prefix + shape.tokens_in
    tiles = torch.export.Dim("tiles", min=1, max=4096)
    arguments = (
        example((2, total, vision.hidden_size), dtype),
        example((2, heads, total, dim), dtype),
        example((2, heads, total, dim), dtype),
        example((2, total), dtype),
    )
    return arguments, ({0: tiles},) * 4


def _projected(plan: Plan, shape: ReducerShape, dtype: torch.dtype) -> Inputs:
    width = plan.shape.text.hidden_size
    images = torch.export.Dim("images", min=1, max=64)
    text = torch.export.Dim("text", min=1, max=65536)
    arguments = (example((2, shape.tokens_in, width), dtype), example((1, 9, width), dtype))
    return arguments, ({0: images}, {1: text})


def _decoder(plan: Plan, shape: ReducerShape, dtype: torch.dtype) -> Inputs:
    text = plan.shape.text
    limit = 2 * text.context_length + 2 * shape.tokens_in
    length = torch.export.Dim("sequence", min=shape.tokens_in + 1, max=limit)
    cache = torch.export.Dim("cache", min=shape.tokens_in + 1, max=2 * limit)
    images = torch.export.Dim("images", min=1, max=64)
    reduced = torch.export.Dim("reduced", min=1, max=limit)
    words = torch.export.Dim("text", min=1, max=limit)
    entered = torch.export.Dim("entered", min=1, max=limit)
    rows, after = 2 * shape.tokens_in + 9, 2 * shape.tokens_out + 9
    arguments = (
        example((1, rows, text.hidden_size), dtype),
        example((1, text.heads, rows, text.head_dim), dtype),
        example((1, text.kv_heads, rows + 5, text.head_dim), dtype),
        example((1, rows), torch.int64),
        example((2, shape.tokens_in), torch.int64),
        example((after,), torch.int64),
        example((7,), torch.int64),
        example((1, 7, text.hidden_size), dtype),
        example((2, shape.tokens_in + 1, text.hidden_size), dtype),
    )
    axes = (
        {1: length},
        {2: length},
        {2: cache},
        {1: length},
        {0: images},
        {0: reduced},
        {0: words},
        {1: words},
        {0: images, 1: entered},
    )
    return arguments, axes
