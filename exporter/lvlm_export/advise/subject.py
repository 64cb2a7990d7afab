"""What a plan is made for: a model's shapes, from a checkpoint's JSON files or a preset. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lvlm_export.families import refuse_image_size
from lvlm_export.plan.fit import geometry_of
from lvlm_export.reduction.budget import Geometry
from lvlm_profiles.shapes.dims import ModelDims
from lvlm_profiles.shapes.presets import Preset, Tiles
from lvlm_runtime.image import anyres
from lvlm_runtime.image.smart import smart_resize


@dataclass(frozen=True)
class Subject:
    """A model as the planner sees it.

    Attributes:
        name: As the user gave it.
        dims: What it computes with.
        geometry: How its tokens are counted.
        packed: Projected tiles go through a packer before they are an image's tokens.
        context_length: Positions for prompt and answer.
        condensed: It has a trained projector with a token count of its own.
        reads_text: That projector takes the question.
        group: Patches that are one token up to the projector.
    """

    name: str
    dims: ModelDims
    geometry: Geometry
    packed: bool
    context_length: int
    condensed: bool = False
    reads_text: bool = False
    group: int = 1


def subject_of_checkpoint(
    name: str, directory: Path, image_size: tuple[int, int] | None
) -> Subject:
    """From a checkpoint's JSON files and headers; transformers, and torch with it, reads them.

    Raises:
        UsageError: An image size that does not fit the family.
        LvlmError: A checkpoint that is not supported.
    """
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.checkpoint.preflight import preflight

    checkpoint = Checkpoint.open(directory)
    if checkpoint.has_weights:
        preflight(checkpoint, image_size)
    shape = checkpoint.shape(image_size)
    projector = shape.projector
    return Subject(
        name=name,
        dims=shape.dims,
        geometry=geometry_of(shape),
        packed=shape.packed,
        context_length=shape.text.context_length,
        condensed=projector is not None,
        reads_text=projector is not None and projector.reads_text,
        group=shape.vision.group,
    )


def subject_of_preset(preset: Preset, image_size: tuple[int, int] | None) -> Subject:
    """From a preset, without torch; UsageError for an image size where pictures are one view."""
    dims, tiles = preset.dims, preset.tiles
    layouts: tuple[anyres.TileLayout, ...] = (anyres.IMAGE_LAYOUT,)
    grids = tiles is not None and tiles.layout == anyres.SINGLE
    if tiles is not None and grids:
        single = _single_layout(tiles, image_size)
        layouts = (single, anyres.MULTI_LAYOUT) if tiles.several else (single,)
    elif tiles is not None and tiles.layout == anyres.IMAGE:
        dims, layouts = _of_any_shape(preset, tiles, image_size)
    elif tiles is not None:
        size = image_size or (tiles.edge, tiles.edge)
        layouts = (anyres.tiles_layout(*size, tiles.edge, tiles.fewest, tiles.most),)
    else:
        refuse_image_size(image_size, preset.title)
    geometry = Geometry(
        vision_layers=dims.vision.layers,
        vision_tokens=dims.vision.tokens // preset.group,
        text_layers=dims.text.layers,
        layouts=layouts,
        square_tiles=grids,
        visual_tokens=_counter(tiles),
        group=preset.group,
    )
    name = f"shape:{preset.name}"
    return Subject(
        name=name,
        dims=dims,
        geometry=geometry,
        packed=grids or layouts[0].tiles > 1,
        context_length=preset.context_length,
        group=preset.group,
    )


def _of_any_shape(
    preset: Preset, tiles: Tiles, image_size: tuple[int, int] | None
) -> tuple[ModelDims, tuple[anyres.TileLayout, ...]]:
    """Sizes for a picture that keeps its shape, by default the preset's square."""
    side = math.isqrt(preset.dims.vision.tokens // preset.group) * tiles.edge
    cell = tiles.edge**2
    height, width = smart_resize(
        *(image_size or (side, side)), tiles.edge, tiles.fewest * cell, tiles.most * cell
    )
    tokens = height * width // cell * preset.group
    dims = replace(preset.dims, vision=replace(preset.dims.vision, tokens=tokens))
    return dims, (anyres.TileLayout(anyres.IMAGE, 1, 0, 0, height, width),)


def _single_layout(tiles: Tiles, image_size: tuple[int, int] | None) -> anyres.TileLayout:
    edges = [tiles.edge * count for count in range(1, tiles.largest_grid + 1)]
    pinpoints = [
        (height, width)
        for height in edges
        for width in edges
        if tiles.fewest <= height * width // tiles.edge**2 <= tiles.most
    ]
    return anyres.layout_for(*(image_size or (tiles.edge, tiles.edge)), pinpoints, tiles.edge)


def _counter(tiles: Tiles | None) -> Callable[[anyres.TileLayout, int], int]:
    if tiles is None:
        return lambda _layout, kept: kept
    if tiles.layout == anyres.IMAGE:
        return lambda _layout, kept: kept
    if tiles.layout != anyres.SINGLE:
        return lambda layout, kept: layout.tiles * kept
    patches = tiles.max_patches
    return lambda layout, kept: anyres.visual_tokens(layout, math.isqrt(kept), patches)
