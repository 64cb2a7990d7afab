"""Which engines a bundle needs, with which optimisation profiles: integers in, integers out.

One engine per graph. A weighted subgraph gets one profile per token budget, its optimum at the
exact token count of that budget, and a decoder subgraph one more for decoding. That one is a small
range and not a single token: at a fixed size TensorRT lays all weights out a second time and the
engine doubles. Caches get a static length, which the parser wants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lvlm_runtime.engine_limits import (
    Limits,
    Span,
    capacities_of,
    check_limits,
    entering,
    images_of,
    parts,
)
from lvlm_runtime.onnx_file import Graph, read_model
from lvlm_runtime.op_gate import CACHE_INPUTS
from lvlm_runtime.spec import Budget, LayoutBudget, Manifest, Reduction

# Tokens per decode step that the decode profile covers; one is the optimum.
DECODE_MAX = 16
DECODE = "decode"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """Sizes of every dynamic input.

    Attributes:
        names: Budgets that use it, ``0.33 image``, or ``decode``.
        shapes: Input -> smallest, optimal and largest shape.
    """

    names: tuple[str, ...]
    shapes: dict[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class EngineSpec:
    """One engine.

    Attributes:
        graph: The graph's file.
        fixed: Input -> axis -> size, made static before parsing.
        profiles: Optimisation profiles, in their order in the engine; none where all is static.
        weights_bytes: What the graph's constants take.
    """

    graph: str
    fixed: dict[str, dict[int, int]]
    profiles: tuple[Profile, ...]
    weights_bytes: int


@dataclass
class _Draft:
    """An engine while budgets add to it: spans per profile, input and axis."""

    fixed: dict[str, dict[int, int]] = field(default_factory=dict)
    profiles: dict[str, dict[str, dict[int, Span]]] = field(default_factory=dict)


def plan_engines(directory: Path, manifest: Manifest, limits: Limits) -> tuple[EngineSpec, ...]:
    """All engines of a bundle, weighted ones first.

    Args:
        directory: The bundle, whose graph files are read.
        manifest: What it holds.
        limits: The largest request.

    Raises:
        UsageError: ``limits`` do not fit the model.
    """
    check_limits(manifest, limits)
    graphs: dict[str, Graph] = {}

    def graph(name: str) -> Graph:
        if name not in graphs:
            graphs[name] = read_model(directory / name).graph
        return graphs[name]

    drafts: dict[str, _Draft] = {}
    for stage in (*manifest.vision, *manifest.decoder):
        drafts[stage.graph] = _Draft()
    drafts[manifest.lm_head], drafts[manifest.assemble] = _Draft(), _Draft()
    capacities = capacities_of(manifest, limits)
    for budget, part in parts(manifest, limits.images):
        _Walk(manifest, limits, budget, part, drafts, graph, capacities).all()
    return tuple(_finish(name, draft, graph(name)) for name, draft in drafts.items())


@dataclass(frozen=True)
class _Walk:
    """One budget and layout on its way through the chain, adding a profile to every graph."""

    manifest: Manifest
    limits: Limits
    budget: Budget
    part: LayoutBudget
    drafts: dict[str, _Draft]
    graph: Callable[[str], Graph]
    capacities: dict[str, int]

    def all(self) -> None:
        self.vision()
        self.decoder()

    def add(self, graph: str, spans: dict[str, dict[int, Span]], name: str = "") -> _Draft:
        draft = self.drafts.setdefault(graph, _Draft())
        draft.profiles[name or f"{self.budget.ratio:g} {self.part.layout}"] = spans
        return draft

    @property
    def images(self) -> Span:
        return images_of(self.part.layout, self.limits)

    def vision(self) -> None:
        layout = next(x for x in self.manifest.layouts if x.name == self.part.layout)
        tiles = _times(self.images, layout.tiles)
        reductions = {cut.site: cut for cut in self.budget.vision}
        tokens = self.prefix() + self.manifest.vision_tokens
        for index, stage in enumerate(self.manifest.vision):
            entry = (
                {"pixel_values": {0: tiles}}
                if index == 0
                else {"hidden": {0: tiles, 1: _just(tokens)}}
            )
            self.add(stage.graph, entry)
            cut = reductions.get(stage.site or "")
            if cut is not None:
                self.add(cut.graph, {name: {0: tiles} for name in cut.inputs})
                tokens += cut.tokens_out - cut.tokens_in
        if self.part.packer is not None:
            self.add(self.part.packer, {"features": {0: self.images}})

    def prefix(self) -> int:
        """Tokens of a tile that stand for no patch (CLS): what a reducer takes beyond its count."""
        for budget in self.manifest.budgets:
            for cut in budget.vision:
                inputs = {info.name: info.dims for info in self.graph(cut.graph).inputs}
                rows = inputs["hidden"][1]
                assert isinstance(rows, int)
                return rows - cut.tokens_in
        return 0

    def decoder(self) -> None:
        text = (1, min(64, self.limits.text_tokens), self.limits.text_tokens)
        part, visual = self.part, entering(self.part)
        if part.projected is not None:
            entry = {"visual": {0: self.images}, "text": {1: text}}
            self.add(part.projected.graph, {name: entry[name] for name in part.projected.inputs})
        rows = _plus(text, _times(self.images, visual))
        assembled = {
            "text": {1: text},
            "visual": {0: self.images, 1: _just(visual)},
            "order": {0: rows},
        }
        self.add(self.manifest.assemble, assembled)
        cuts = {cut.site: cut for cut in part.decoder}
        for stage in self.manifest.decoder:
            capacity = self.capacities[stage.name]
            # From one token on, so that a prompt without a picture fits every budget.
            fed = {"hidden": {1: (1, *rows[1:])}, "position_ids": {1: (1, *rows[1:])}}
            draft = self.add(stage.graph, fed)
            draft.fixed = {
                info.name: {2: capacity}
                for info in self.graph(stage.graph).inputs
                if info.name.startswith(CACHE_INPUTS)
            }
            cut = cuts.get(stage.site or "")
            if cut is not None:
                after = _plus(text, _times(self.images, cut.tokens_out))
                self.decoder_reducer(cut, rows, after, text, capacity)
                rows = after
            decoding = {name: {1: (1, 1, DECODE_MAX)} for name in fed}
            draft.profiles.pop(DECODE, None)
            self.add(stage.graph, decoding, DECODE)
        # Only the last row is used, so one profile from one token on serves prefill and decode.
        head = self.drafts[self.manifest.lm_head].profiles.get("all", {"hidden": {1: (1, 1, 1)}})
        longest = max(head["hidden"][1][2], rows[2])
        self.add(self.manifest.lm_head, {"hidden": {1: (1, 1, longest)}}, "all")

    def decoder_reducer(
        self, cut: Reduction, rows: Span, after: Span, text: Span, capacity: int
    ) -> None:
        spans = {
            "hidden": {1: rows},
            "query": {2: rows},
            "position_ids": {1: rows},
            "visual_index": {0: self.images},
            "order": {0: after},
            "text_index": {0: text},
        }
        draft = self.add(cut.graph, {n: spans[n] for n in cut.inputs if n in spans})
        draft.fixed = {"key": {2: capacity}} if "key" in cut.inputs else {}


def _finish(name: str, draft: _Draft, graph: Graph) -> EngineSpec:
    """Spans to whole shapes; budgets with the same shapes share a profile."""
    shared: dict[str, Profile] = {}
    for label, spans in draft.profiles.items():
        shapes = {}
        for info in graph.inputs:
            fixed = draft.fixed.get(info.name, {})
            if all(isinstance(d, int) or axis in fixed for axis, d in enumerate(info.dims)):
                continue
            axes = spans.get(info.name, {})
            sizes = [
                _just(d) if isinstance(d, int) else axes[axis] for axis, d in enumerate(info.dims)
            ]
            low, best, high = (tuple(span[i] for span in sizes) for i in range(3))
            shapes[info.name] = (low, best, high)
        if shapes:
            known = shared.get(repr(shapes))
            names = (label,) if known is None else (*known.names, label)
            shared[repr(shapes)] = Profile(names, shapes)
    weights = sum(constant.size_bytes for constant in graph.constants.values())
    return EngineSpec(name, draft.fixed, tuple(shared.values()), weights)


def _just(size: int) -> Span:
    return size, size, size


def _times(span: Span, factor: int) -> Span:
    return span[0] * factor, span[1] * factor, span[2] * factor


def _plus(one: Span, other: Span) -> Span:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]
