"""Every graph of a bundle: its module, example inputs and signature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lvlm_export.families import Family, ModelShape, Parts
from lvlm_export.graphs.element_types import torch_dtype
from lvlm_export.graphs.export import example
from lvlm_export.graphs.reducers import make_reducer, reducer_inputs
from lvlm_export.graphs.subgraphs import (
    Assemble,
    DecoderSubgraph,
    LmHead,
    ProjectorSubgraph,
    VisionSubgraph,
)
from lvlm_export.graphs.trace import Signature
from lvlm_export.plan.cuts import DecoderCut, VisionCut
from lvlm_export.plan.files import PROJECTOR_FILE, lm_head_files, packer_file, reducer_file
from lvlm_export.plan.plan import Plan
from lvlm_export.reduction.budget import SiteCount
from lvlm_runtime.bundle.manifest import SEEN_FROM, SEEN_TO, SIZE_BIAS
from lvlm_runtime.image.anyres import TILES


@dataclass(frozen=True)
class GraphJob:
    """One graph to export.

    Attributes:
        file: Name in the bundle.
        module: What is traced.
        arguments: Example inputs.
        signature: Names and dynamic axes.
        weighted: Its weights go to the weight file; else it must have none.
        reads_cache: It takes a layer's keys as ``key``, a buffer of the key-value cache.
    """

    file: str
    module: nn.Module
    arguments: tuple[Any, ...]
    signature: Signature
    weighted: bool
    reads_cache: bool = False


def graph_jobs(plan: Plan, family: Family, model: nn.Module) -> Iterator[GraphJob]:
    """All graphs of a bundle, weighted ones first; reducers that budgets share come once."""
    parts, shape = family.parts(model), plan.shape
    dtype = torch_dtype(plan.options.effective_precision)
    for vision_cut in plan.vision:
        yield vision_job(parts, shape, vision_cut, dtype)
    if shape.projector is not None:
        yield projector_job(parts, shape, dtype)
    for decoder_cut in plan.decoder:
        yield decoder_job(parts, shape, decoder_cut, dtype)
    yield from lm_head_jobs(parts, shape, plan.options.lm_head_splits, dtype)
    yield assemble_job(shape, dtype)
    seen: set[str] = set()
    for job in _budget_jobs(plan, family, model, dtype):
        if job.file not in seen:
            seen.add(job.file)
            yield job


def _budget_jobs(
    plan: Plan, family: Family, model: nn.Module, dtype: torch.dtype
) -> Iterator[GraphJob]:
    layouts = {layout.name: layout for layout in plan.shape.layouts}
    for budget in plan.budgets:
        for count in budget.vision:
            yield reducer_job(plan, count, dtype)
        kept = budget.kept_per_tile(plan.shape.vision.tokens)
        for part in budget.layouts:
            packer = family.packer(model, layouts[part.layout], kept)
            if packer is not None:
                layout = layouts[part.layout]
                yield packer_job(packer, plan.shape, layout, kept, dtype, plan.sized)
            for count in part.counts:
                yield reducer_job(plan, count, dtype)


def vision_job(parts: Parts, shape: ModelShape, cut: VisionCut, dtype: torch.dtype) -> GraphJob:
    """A vision subgraph: any number of tiles, any number of tokens after the first cut."""
    vision = shape.vision
    tiles = torch.export.Dim("tiles", min=1, max=4096)
    tokens = torch.export.Dim("tokens", min=2, max=65536)
    total = vision.prefix + vision.tokens
    open_tokens = {0: tiles} if cut.index == 0 else {0: tiles, 1: tokens}
    pixels = {0: tiles}
    if cut.any_size:
        patch = vision.image_size // math.isqrt(vision.tokens)
        edge = torch.export.Dim("edge", min=patch, max=vision.image_size)
        pixels = {0: tiles, 2: edge, 3: edge}
    known = {
        "pixel_values": (example((2, 3, *vision.picture), dtype), pixels),
        "hidden": (example((2, total, vision.group * vision.hidden_size), dtype), open_tokens),
        "sizes": (example((2, total), dtype), open_tokens),
        "grid": (example((2, total, 2), torch.int64), open_tokens),
    }
    axes = tuple(known[name][1] for name in cut.inputs)
    signature = Signature(cut.inputs, cut.outputs, axes, positional=1)
    arguments = tuple(known[name][0] for name in cut.inputs)
    module = VisionSubgraph(parts, cut, vision)
    return GraphJob(f"{cut.name}.onnx", module, arguments, signature, True)


def projector_job(parts: Parts, shape: ModelShape, dtype: torch.dtype) -> GraphJob:
    """A trained projector, for any number of pictures of one question."""
    projector, vision = shape.projector, shape.vision
    assert projector is not None
    width = len(projector.levels) * vision.hidden_size
    arguments = (
        example((2, vision.tokens, width), dtype),
        example((1, 1, shape.text.hidden_size), dtype),
    )
    images = torch.export.Dim("images", min=1, max=4096)
    used = len(projector.inputs)
    signature = Signature(projector.inputs, ("visual",), ({0: images}, None)[:used])
    module = ProjectorSubgraph(parts, projector.reads_text)
    return GraphJob(PROJECTOR_FILE, module, arguments[:used], signature, True)


def decoder_job(parts: Parts, shape: ModelShape, cut: DecoderCut, dtype: torch.dtype) -> GraphJob:
    """A decoder subgraph: prefill, chunks and single tokens through one graph."""
    text = shape.text
    sequence = torch.export.Dim("sequence", min=1, max=text.context_length)
    cache = torch.export.Dim("cache", min=2, max=2 * text.context_length)
    layers = range(cut.first, cut.last)
    keys = [example((1, text.kv_heads, 32, text.head_dim), dtype) for _ in layers]
    values = [example((1, text.kv_heads, 32, text.head_dim), dtype) for _ in layers]
    planes = [example((1, 8, text.hidden_size), dtype) for _ in cut.planes]
    known = {
        SIZE_BIAS: (example((1, 32), dtype), {1: cache}),
        SEEN_TO: (example((8,), torch.int64), {0: sequence}),
        SEEN_FROM: (example((8,), torch.int64), {0: sequence}),
    }
    rows = [known[name] for name in cut.rows]
    arguments = (
        example((1, 8, text.hidden_size), dtype),
        example((text.position_rows, 8), torch.int64),
        example((1,), torch.int64),
        example((1,), torch.int64),
        keys,
        values,
        planes,
        [value for value, _ in rows],
    )
    past = [f"past_{kind}.{layer}" for kind in ("key", "value") for layer in layers]
    present = [f"present_{kind}.{layer}" for kind in ("key", "value") for layer in layers]
    signature = Signature(
        ("hidden", "position_ids", "write_index", "kv_length", *past, *cut.inputs),
        ("hidden_out", *(["query"] if cut.scored else []), *present),
        (
            {1: sequence},
            {1: sequence},
            None,
            None,
            [{2: cache}] * len(layers),
            [{2: cache}] * len(layers),
            [{1: sequence}] * len(planes),
            [axes for _, axes in rows],
        ),
    )
    return GraphJob(f"{cut.name}.onnx", DecoderSubgraph(parts, cut), arguments, signature, True)


def lm_head_jobs(
    parts: Parts, shape: ModelShape, splits: int, dtype: torch.dtype
) -> Iterator[GraphJob]:
    """Logits of every row given, the vocabulary in ``splits`` parts of about the same size."""
    sequence = torch.export.Dim("sequence", min=1, max=shape.text.context_length)
    signature = Signature(("hidden",), ("logits",), ({1: sequence},))
    bounds = [shape.text.vocab_size * index // splits for index in range(splits + 1)]
    for file, rows in zip(lm_head_files(splits), itertools.pairwise(bounds), strict=True):
        value = example((1, 8, shape.text.hidden_size), dtype)
        yield GraphJob(file, LmHead(parts, rows), (value,), signature, True)


def assemble_job(shape: ModelShape, dtype: torch.dtype) -> GraphJob:
    """Text and visual embeddings in prompt order."""
    width = shape.text.hidden_size
    dims = {
        name: torch.export.Dim(name, min=1, max=65536)
        for name in ("text", "images", "visual", "sequence")
    }
    signature = Signature(
        ("text", "visual", "order"),
        ("hidden",),
        ({1: dims["text"]}, {0: dims["images"], 1: dims["visual"]}, {0: dims["sequence"]}),
    )
    arguments = (
        example((1, 5, width), dtype),
        example((2, 7, width), dtype),
        example((19,), torch.int64),
    )
    return GraphJob("assemble.onnx", Assemble(), arguments, signature, False)


def reducer_job(plan: Plan, count: SiteCount, dtype: torch.dtype) -> GraphJob:
    """A reducer at any site."""
    reducer = make_reducer(plan, count)
    arguments, signature = reducer_inputs(plan, reducer, dtype)
    in_decoder = count.site.stage == "decoder"
    return GraphJob(reducer_file(count), reducer, arguments, signature, False, in_decoder)


def packer_job(
    packer: nn.Module, shape: ModelShape, layout: Any, kept: int, dtype: torch.dtype, sized: bool
) -> GraphJob:
    """Projected tiles to an image's tokens; it may read a newline, so it counts as weighted.

    ``sized``: their sizes go the same way.
    """
    # Pictures whose tiles are packed as a grid come alone.
    grid = bool(layout.grid_rows) and layout.kind != TILES
    images = torch.export.Dim("images", min=1, max=64)
    tiles = layout.tiles if grid else 2 * layout.tiles
    values = [example((tiles, kept, shape.text.hidden_size), dtype)]
    values += [example((tiles, kept), dtype)] * sized
    inputs, outputs = (("features", "sizes"), ("visual", "sizes_out"))
    used = len(values)
    axes = (None if grid else {0: layout.tiles * images},) * used
    signature = Signature(inputs[:used], outputs[:used], axes)
    return GraphJob(packer_file(layout.name, kept), packer, tuple(values), signature, True)
