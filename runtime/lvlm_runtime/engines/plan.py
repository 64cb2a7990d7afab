"""Which engines a bundle needs, with which optimisation profiles: integers in, integers out.

One engine per graph. A weighted subgraph gets one profile per token budget, its optimum at the
exact token count of that budget, and a decoder subgraph one more for decoding. That one is a small
range and not a single token: at a fixed size TensorRT lays all weights out a second time and the
engine doubles. Caches that a graph writes itself get a static length, which the parser wants; where
it takes the filled rows alone (sequence-major), any number of them may stand before those of a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.manifest import (
    GRID,
    SEEN_FROM,
    SEEN_TO,
    SEQUENCE_MAJOR,
    SIZE_BIAS,
    Budget,
    LayoutBudget,
    Manifest,
)
from lvlm_runtime.bundle.route import Step, route, shared_graphs
from lvlm_runtime.engines.limits import (
    Limits,
    SizeRange,
    capacities_of,
    check_limits,
    images_of,
    reachable_budgets,
)
from lvlm_runtime.graphs.gate import CACHE_INPUTS
from lvlm_runtime.graphs.reader import Graph, parse_model

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
    profiles: dict[str, dict[str, dict[int, SizeRange]]] = field(default_factory=dict)


def plan_engines(bundle: Bundle, limits: Limits) -> tuple[EngineSpec, ...]:
    """All engines of a bundle: those that every budget uses first, in the order of the chain.

    Args:
        bundle: The bundle, whose graphs are read.
        limits: The largest request.

    Raises:
        UsageError: ``limits`` do not fit the model.
    """
    manifest = bundle.manifest
    check_limits(manifest, limits)
    graphs: dict[str, Graph] = {}

    def graph(name: str) -> Graph:
        if name not in graphs:
            graphs[name] = parse_model(bundle.graph(name), bundle.path(name)).graph
        return graphs[name]

    drafts = {name: _Draft() for name in shared_graphs(manifest)}
    capacities = capacities_of(manifest, limits)
    for budget, part in reachable_budgets(manifest, limits.images):
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
        for step in route(self.manifest, self.budget, self.part):
            if step.kind == "vision":
                self.vision_stage(step)
            elif step.kind == "assemble":
                self.assemble(step)
            elif step.kind == "decoder":
                self.decoder_stage(step)
            elif step.kind == "lm_head":
                self.head(step)
            elif step.kind == "reducer" and step.stage == "decoder":
                self.decoder_reducer(step)
            elif step.kind == "reducer" and step.stage == "projected":
                spans = {"visual": {0: self.images}, "text": {1: self.said}}
                self.add(step.graph, {name: spans[name] for name in step.inputs})
            elif step.kind == "packer":
                rows = self.tiles if self.part.in_order else self.images
                self.add(step.graph, {name: {0: rows} for name in step.inputs})
            elif step.kind == "projector":
                # The question is one row; only the tiles' number is open.
                self.add(step.graph, {"features": {0: self.tiles}})
            else:
                self.add(step.graph, {name: {0: self.tiles} for name in step.inputs})

    def add(self, graph: str, spans: dict[str, dict[int, SizeRange]], name: str = "") -> _Draft:
        draft = self.drafts.setdefault(graph, _Draft())
        draft.profiles[name or f"{self.budget.ratio:g} {self.part.layout}"] = spans
        return draft

    @property
    def images(self) -> SizeRange:
        return images_of(self.part.layout, self.limits)

    @property
    def tiles(self) -> SizeRange:
        layout = next(x for x in self.manifest.layouts if x.name == self.part.layout)
        return _times(self.images, layout.tiles)

    @property
    def text(self) -> SizeRange:
        return 1, min(64, self.limits.text_tokens), self.limits.text_tokens

    @property
    def said(self) -> SizeRange:
        """Text of a conversation, whose prompt holds earlier answers: up to all that caches hold."""
        return 1, self.text[1], max(self.capacities.values())

    def rows(self, visual: int) -> SizeRange:
        """Rows of a prompt whose images have ``visual`` tokens each."""
        return _plus(self.text, _times(self.images, visual))

    def vision_stage(self, step: Step) -> None:
        dims = self.manifest.dims.vision
        edge = math.isqrt(step.tokens_in) * dims.patch
        rows = {0: self.tiles, 1: _just(dims.prefix + step.tokens_in)}
        spans = {"hidden": rows, "sizes": rows, GRID: rows}
        spans["pixel_values"] = {0: self.tiles, 2: _just(edge), 3: _just(edge)}
        self.add(step.graph, {name: spans[name] for name in step.inputs})

    def assemble(self, step: Step) -> None:
        # The planes of earlier vision layers pass it too, with rows of tokens that left since.
        planes = any(stage.planes for stage in self.manifest.decoder)
        tokens = step.tokens_in
        most = self.manifest.vision_tokens if planes else tokens
        spans = {
            "text": {1: self.said},
            "visual": {0: self.images, 1: (tokens, tokens, most)},
            # From one row on: those that are new.
            "order": {0: (1, self.rows(step.tokens_in)[1], max(self.capacities.values()))},
        }
        self.add(step.graph, spans)

    def head(self, step: Step) -> None:
        # The last row of a prompt or a step, or all rows of a step.
        for graph in step.graphs:
            self.add(graph, {"hidden": {1: (1, 1, DECODE_MAX)}}, "all")

    def decoder_stage(self, step: Step) -> None:
        rows, capacity = self.rows(step.tokens_in), self.capacities[step.name]
        inputs = [info.name for info in self.graph(step.graph).inputs]
        caches = [name for name in inputs if name.startswith(CACHE_INPUTS)]
        # From one token on, so that a prompt without a picture fits every budget, to a conversation
        # that fills the caches.
        whole = (1, rows[1], capacity)
        fed = {"hidden": {1: whole}, "position_ids": {1: whole}}
        assert step.subgraph is not None
        fed |= {name: {1: whole} for name in step.subgraph.planes}
        fed |= {name: {0: whole} for name in (SEEN_TO, SEEN_FROM) if name in step.inputs}
        decoding = {name: dict.fromkeys(axes, (1, 1, DECODE_MAX)) for name, axes in fed.items()}
        if self.sequence_major:
            # Nothing stands before most prompts, an earlier turn before some.
            fed |= {name: {1: (0, 0, capacity - 1)} for name in caches}
            decoding |= {name: {1: (0, rows[1], capacity - 1)} for name in caches}
        if SIZE_BIAS in step.inputs and self.sequence_major:
            # As many as are filled when the call is done.
            fed[SIZE_BIAS] = {1: whole}
            decoding[SIZE_BIAS] = {1: (1, rows[1] + 1, capacity)}
        draft = self.add(step.graph, fed)
        if not self.sequence_major:
            draft.fixed = {name: {2: capacity} for name in caches}
            draft.fixed |= {SIZE_BIAS: {1: capacity}} if SIZE_BIAS in step.inputs else {}
        earlier = draft.profiles.pop(DECODE, None)
        if earlier is not None and self.sequence_major:
            # The best length of a decode step is that of the first budget, the bundle's default.
            decoding = earlier
        self.add(step.graph, decoding, DECODE)

    @property
    def sequence_major(self) -> bool:
        return self.manifest.kv_layout == SEQUENCE_MAJOR

    def decoder_reducer(self, step: Step) -> None:
        assert step.subgraph is not None
        capacity = self.capacities[step.subgraph.name]
        rows, after = (
            (*self.rows(tokens)[:2], capacity) for tokens in (step.tokens_in, step.tokens_out)
        )
        spans = {
            "hidden": {1: rows},
            "query": {2: rows},
            "position_ids": {1: rows},
            "visual_index": {0: self.images},
            "order": {0: after},
            "text_index": {0: self.said},
            "text_embeds": {1: self.said},
            "visual_embeds": {0: self.images, 1: _just(self.part.tokens_in)},
        }
        if self.sequence_major:
            spans |= {"key": {1: rows}, SIZE_BIAS: {1: rows}}
        draft = self.add(step.graph, {n: spans[n] for n in step.inputs if n in spans})
        whole = {} if self.sequence_major else {"key": {2: capacity}, SIZE_BIAS: {1: capacity}}
        draft.fixed = {name: axes for name, axes in whole.items() if name in step.inputs}


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


def _just(size: int) -> SizeRange:
    return size, size, size


def _times(span: SizeRange, factor: int) -> SizeRange:
    return span[0] * factor, span[1] * factor, span[2] * factor


def _plus(one: SizeRange, other: SizeRange) -> SizeRange:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]
