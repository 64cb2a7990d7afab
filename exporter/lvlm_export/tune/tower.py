"""Pictures through the vision tower for many trials: what trials have in common is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lvlm_export.check.clues import Projections, packed_sizes, vision_clues
from lvlm_export.check.layers import (
    grid_of,
    grouped_attention,
    grouped_feed_forward,
    vision_attention,
)
from lvlm_export.families import Family, ModelShape, Parts
from lvlm_export.reduction.method import Site
from lvlm_export.reduction.reducers import PixelReducer, VisionReducer
from lvlm_export.reduction.tensors import gather_rows, join_groups, split_groups
from lvlm_export.tune.branches import Act, Branching, Effort, Group
from lvlm_runtime.image.anyres import TILES, TileLayout
from lvlm_runtime.prompt.sequence import Origins


@dataclass(frozen=True)
class TowerState:
    """Tiles between two layers.

    Attributes:
        hidden: ``[tiles, P+N, G*C]``.
        origins: Where their tokens stood.
        sizes: ``[tiles, P+N]``, patches that each stands for; None while that is one each, or where
            the method does not count them.
        weights: Attention of the layer before.
        projections: Of that layer.
        inside: What its windows added to scores; None for no windows.
        planes: ``[tiles, N, D]`` each, what decoder layers add to the tokens.
        levels: Features of the layers that are joined at the end.
    """

    hidden: Tensor
    origins: Origins
    sizes: Tensor | None = None
    weights: Tensor | None = None
    projections: Projections | None = None
    inside: Tensor | None = None
    planes: tuple[Tensor, ...] = ()
    levels: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """What a group of trials has in common behind the tower and the plain projector.

    Attributes:
        group: Those trials.
        features: ``[tiles, K, L*C]`` where a trained projector follows, else projected and packed
            tokens ``[pictures, V, D]``.
        origins: Where the tokens stood, one row per picture.
        sizes: ``[pictures, V]``, patches that each token stands for, where the decoder counts them.
        planes: ``[pictures, V, D]`` each, what the decoder's first layers add to them.
    """

    group: Group
    features: Tensor
    origins: Origins
    sizes: Tensor | None = None
    planes: tuple[Tensor, ...] = ()


class Tower:
    """The tower of a model.

    Args:
        model: The whole model, which the packer takes its newline from.
        parts: Its modules.
        family: Its family.
        shape: Its shape.
        branching: The trials.
        effort: Counts what is computed.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parts: Parts,
        family: Family,
        shape: ModelShape,
        branching: Branching,
        effort: Effort,
    ) -> None:
        self.model, self.parts, self.family, self.shape = model, parts, family, shape
        self.branching, self.effort = branching, effort
        self.depth = len(parts.vision_layers)

    def encode(
        self, pixel_values: Tensor, layout: TileLayout, asked: int, group: Group
    ) -> Iterator[Encoded]:
        """Pictures through the tower, once for all trials that do the same there.

        Args:
            pixel_values: ``[pictures * tiles, 3, H, W]``.
            layout: What the pictures are cut into.
            asked: Questions about all of them, for the effort.
            group: The trials.
        """
        pictures = len(pixel_values) // layout.tiles
        self._alone = asked / pictures
        for state, same in self._embed(pixel_values, group):
            for behind, numbers in self._layers(state, 0, same):
                yield self._project(behind, numbers, layout, pictures)

    def _embed(self, pixel_values: Tensor, group: Group) -> Iterator[tuple[TowerState, Group]]:
        whole = Origins.whole(len(pixel_values), self.shape.vision.tokens)
        for act, same in self.branching.split(group, Site("pixels", 0)).items():
            if act is None:
                vision, patches = self.shape.vision, self.parts.vision_embed(pixel_values)
                yield TowerState(join_groups(patches, vision.group, vision.prefix), whole), same
                continue
            reducer = self.branching.reducer(act, same)
            assert isinstance(reducer, PixelReducer)
            smaller, places = reducer(pixel_values)
            hidden = self.parts.embed_any_size(smaller)
            yield TowerState(hidden, whole.keep(places.numpy())), same

    def _layers(
        self, state: TowerState, first: int, group: Group
    ) -> Iterator[tuple[TowerState, Group]]:
        """The layers from ``first`` on, and what happens behind the last one."""
        for index in range(first, self.depth):
            attended = self._attend(state, index)
            self._count(state.hidden, group)
            state = attended
            groups = self.branching.split(group, Site("vision", index))
            if list(groups) == [None]:
                state = self._finish(state, index)
                continue
            for act, same in groups.items():
                after = state if act is None else self._reduce(state, act, same)
                yield from self._layers(self._finish(after, index), index + 1, same)
            return
        for act, same in self.branching.split(group, Site("features", self.depth)).items():
            yield state if act is None else self._reduce(state, act, same), same

    def _attend(self, state: TowerState, index: int) -> TowerState:
        """The first half of a layer."""
        vision = self.shape.vision
        if self.parts.blocks is None:
            layer = self.parts.vision_layers[index]
            hidden, weights, projections = vision_attention(layer, state.hidden, state.sizes)
            return replace(state, hidden=hidden, weights=weights, projections=projections)
        grid = None if vision.grid is None else grid_of(state.origins, vision)
        hidden, weights, projections, inside = grouped_attention(
            self.parts, vision, index, state.hidden, state.sizes, grid
        )
        return replace(
            state, hidden=hidden, weights=weights, projections=projections, inside=inside
        )

    def _finish(self, state: TowerState, index: int) -> TowerState:
        """The second half of a layer."""
        vision, planes = self.shape.vision, state.planes
        hidden = grouped_feed_forward(self.parts, vision, index, state.hidden)
        if index + 1 in vision.planes:
            plane = self.parts.planes[len(planes)](split_groups(hidden, vision.group))
            planes = (*planes, plane.reshape(len(hidden), -1, plane.shape[-1]))
        levels = state.levels
        if index + 1 in self.parts.levels:
            levels = {**levels, index + 1: hidden}
        return replace(state, hidden=hidden, levels=levels, planes=planes)

    def _reduce(self, state: TowerState, act: Act, group: Group) -> TowerState:
        reducer = self.branching.reducer(act, group)
        assert isinstance(reducer, VisionReducer)
        assert state.weights is not None
        assert state.projections is not None
        sizes = torch.ones(state.hidden.shape[:2]) if state.sizes is None else state.sizes
        heads = self.shape.vision.heads
        stood = torch.from_numpy(state.origins.offsets)
        clues = vision_clues(
            reducer,
            state.hidden,
            state.weights,
            state.projections,
            heads,
            sizes,
            stood,
            state.inside,
        )
        hidden, places, *new_sizes = reducer.reduce(state.hidden, clues)
        counted = new_sizes[0] if new_sizes and act.tracks_size else None
        return replace(
            state,
            hidden=hidden,
            origins=state.origins.keep(places.numpy()),
            sizes=counted,
            planes=tuple(gather_rows(plane, places) for plane in state.planes),
        )

    def _project(
        self, state: TowerState, group: Group, layout: TileLayout, pictures: int
    ) -> Encoded:
        hidden = state.hidden
        if self.parts.levels:
            hidden = torch.cat([state.levels[level] for level in self.parts.levels], dim=-1)
        vision = self.shape.vision
        features: Tensor = self.parts.project(split_groups(hidden, vision.group, vision.prefix))
        if self.parts.projector is not None:
            return Encoded(group, features, state.origins)
        # Trials that act alike in the tower agree on this: it is a part of their acts.
        counts = self.branching.plans[group[0]].method.sizes_in_decoder
        sizes = None
        if counts and state.sizes is not None:
            sizes = state.sizes[:, self.shape.vision.prefix :]
        packer = self.family.packer(self.model, layout, features.shape[1])
        if packer is None:
            return Encoded(group, features, state.origins, sizes, state.planes)
        if sizes is not None:
            pairs = zip(features.chunk(pictures), sizes.chunk(pictures), strict=True)
            sizes = torch.cat([packed_sizes(packer, each, own) for each, own in pairs])
        features = torch.cat([packer(each) for each in features.chunk(pictures)])
        in_order = layout.name == TILES
        origins = state.origins.joined(layout.tiles) if in_order else None
        return Encoded(group, features, origins or Origins.whole(*features.shape[:2]), sizes)

    def _count(self, hidden: Tensor, group: Group) -> None:
        """One layer: linear maps, and attention of every tile to itself."""
        shape, vision = self.shape.vision, self.shape.dims.vision
        tiles, rows = hidden.shape[0], shape.prefix + (hidden.shape[1] - shape.prefix) * shape.group
        width = vision.width
        maps = 4 * width * width + 2 * width * vision.mlp
        flops = 2.0 * tiles * rows * (maps + 2 * rows * width)
        self.effort.done += flops
        self.effort.alone += flops * self._alone * len(group)
