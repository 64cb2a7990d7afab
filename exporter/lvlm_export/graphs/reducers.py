"""Reducers as graphs: the module of a site and a budget, its example inputs and signature."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_export.families import ModelShape
from lvlm_export.graphs.export import example
from lvlm_export.graphs.trace import Signature
from lvlm_export.plan.plan import Plan
from lvlm_export.reduction.budget import SiteCount
from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_export.reduction.reducers import (
    DecoderReducer,
    PixelReducer,
    ProjectedReducer,
    VisionReducer,
)
from lvlm_runtime.bundle.manifest import PREFIX

Reducer = PixelReducer | VisionReducer | ProjectedReducer | DecoderReducer


def make_reducer(plan: Plan, count: SiteCount) -> Reducer:
    """The module that reduces at a site of a plan."""
    return reducer_of(plan.method, plan.shape, plan.options.seed, count, plan.sized)


def reducer_of(
    method: Method, model: ModelShape, seed: int, count: SiteCount, sized: bool = False
) -> Reducer:
    """The module that reduces by a method at one of its sites in a model.

    ``sized``: attention of the decoder counts the patches that a token stands for.
    """
    vision, text = model.vision, model.text
    before = count.site.stage in ("vision", "features")
    shape = ReducerShape(
        count.tokens_in,
        count.tokens_out,
        vision.prefix if before else 0,
        vision.scale if before else text.scale,
        seed,
        vision.tokens if before else 0,
        vision.group if before else 1,
        _window(model, count.site) if before else 0,
        vision.side_rows if before else (),
        vision.grid[1] if before and vision.grid else 0,
        text.attention != PREFIX,
    )
    selector = method.selector(count.site, shape)
    if count.site.stage == "pixels":
        return PixelReducer(shape, selector)
    if before:
        return VisionReducer(shape, selector)
    if count.site.stage == "projected":
        return ProjectedReducer(shape, selector)
    return DecoderReducer(shape, selector, sized)


def _window(model: ModelShape, site: Site) -> int:
    """Of the layer whose attention scores the tokens: behind the tower that is the last."""
    layer = site.layer if site.stage == "vision" else model.vision.layers - 1
    return model.vision.window_at(layer)


def reducer_inputs(
    plan: Plan, reducer: Reducer, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], Signature]:
    """Example inputs of a reducer, and its names and dynamic axes."""
    if isinstance(reducer, PixelReducer):
        arguments, axes = _pixels(plan, dtype)
    elif isinstance(reducer, VisionReducer):
        return _vision(plan, reducer, dtype)
    elif isinstance(reducer, ProjectedReducer):
        arguments, axes = _projected(plan, reducer.shape, dtype)
    else:
        return _decoder(plan, reducer, dtype)
    used = len(reducer.inputs)
    return arguments[:used], Signature(reducer.inputs, reducer.outputs, axes[:used])


Inputs = tuple[tuple[Tensor, ...], tuple[dict[int, torch.export.Dim], ...]]


def _pixels(plan: Plan, dtype: torch.dtype) -> Inputs:
    tiles = torch.export.Dim("tiles", min=1, max=4096)
    return (example((2, 3, *plan.shape.vision.picture), dtype),), ({0: tiles},)


def _vision(
    plan: Plan, reducer: VisionReducer, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], Signature]:
    vision, shape = plan.shape.vision, reducer.shape
    heads, dim = vision.heads, vision.hidden_size // vision.heads
    total = shape.prefix + shape.tokens_in
    patches = shape.prefix + shape.tokens_in * shape.group
    tiles = torch.export.Dim("tiles", min=1, max=4096)
    known = {
        "hidden": example((2, total, shape.group * vision.hidden_size), dtype),
        "query": example((2, heads, patches, dim), dtype),
        "key": example((2, heads, patches, dim), dtype),
        "sizes": example((2, total), dtype),
        "origins": example((2, shape.tokens_in), torch.int64),
        "grid": example((2, shape.tokens_in, 2), torch.int64),
    }
    arguments = tuple(known[name] for name in reducer.inputs)
    axes = ({0: tiles},) * len(arguments)
    return arguments, Signature(reducer.inputs, reducer.outputs, axes, reducer.positional)


def _projected(plan: Plan, shape: ReducerShape, dtype: torch.dtype) -> Inputs:
    width = plan.shape.text.hidden_size
    images = torch.export.Dim("images", min=1, max=64)
    text = torch.export.Dim("text", min=1, max=65536)
    arguments = (example((2, shape.tokens_in, width), dtype), example((1, 9, width), dtype))
    return arguments, ({0: images}, {1: text})


def _decoder(
    plan: Plan, reducer: DecoderReducer, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], Signature]:
    text, shape = plan.shape.text, reducer.shape
    limit = 2 * text.context_length + 2 * shape.tokens_in
    length = torch.export.Dim("sequence", min=shape.tokens_in + 1, max=limit)
    cache = torch.export.Dim("cache", min=shape.tokens_in + 1, max=2 * limit)
    images = torch.export.Dim("images", min=1, max=64)
    reduced = torch.export.Dim("reduced", min=1, max=limit)
    words = torch.export.Dim("text", min=1, max=limit)
    entered = torch.export.Dim("entered", min=1, max=limit)
    rows, after = 2 * shape.tokens_in + 9, 2 * shape.tokens_out + 9
    known: dict[str, tuple[Tensor, dict[int, torch.export.Dim]]] = {
        "hidden": (example((1, rows, text.hidden_size), dtype), {1: length}),
        "query": (example((1, text.heads, rows, text.head_dim), dtype), {2: length}),
        "key": (example((1, text.kv_heads, rows + 5, text.head_dim), dtype), {2: cache}),
        "position_ids": (example((text.position_rows, rows), torch.int64), {1: length}),
        "visual_index": (example((2, shape.tokens_in), torch.int64), {0: images}),
        "order": (example((after,), torch.int64), {0: reduced}),
        "text_index": (example((7,), torch.int64), {0: words}),
        "text_embeds": (example((1, 7, text.hidden_size), dtype), {1: words}),
        "visual_embeds": (
            example((2, shape.tokens_in + 1, text.hidden_size), dtype),
            {0: images, 1: entered},
        ),
        "size_bias": (example((1, rows + 5), dtype), {1: cache}),
    }
    arguments = tuple(known[name][0] for name in reducer.inputs)
    axes = tuple(known[name][1] for name in reducer.inputs)
    return arguments, Signature(reducer.inputs, reducer.outputs, axes, reducer.positional)
