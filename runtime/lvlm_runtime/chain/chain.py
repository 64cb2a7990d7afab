"""The chain: pixels to features, prompt to logits, one token to the next logits.

Prefill: vision.0 -> reducer -> vision.1 -> … -> features -> (projector) -> (packer) -> assemble -> decoder.0 ->
reducer -> decoder.1 -> … -> lm_head. Decode: the decoder stages with one token and no reducer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.backends import Backend, Runner, Value
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.element_types import numpy_dtype
from lvlm_runtime.bundle.manifest import Budget, LayoutBudget, Projector, Reduction, Subgraph
from lvlm_runtime.chain import kv_cache
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.chain.text_query import Row, TextQuery
from lvlm_runtime.chain.vision_flow import VisionFlow
from lvlm_runtime.prompt.sequence import Origins, Placed, place_tokens, position_ids

PIXELS = "pixels@0"  # the site before the first vision stage


@dataclass(frozen=True)
class Visual:
    """The visual tokens of a request.

    Attributes:
        tokens: ``[n, V, C]``.
        origins: Where they stood before any reduction.
    """

    tokens: Value
    origins: Origins


@dataclass
class DecodeState:
    """What decoding carries from token to token.

    Attributes:
        groups: Caches, one per decoder stage.
        position: RoPE position of the next token; continues the unreduced prompt.
    """

    groups: list[kv_cache.LayerGroup]
    position: int


class Chain:
    """Loaded graphs of a bundle.

    Weighted subgraphs load at once; reducers and packers, a few kilobytes each, when a budget
    first needs them.

    Args:
        bundle: The bundle.
        backend: What runs the graphs.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self.manifest = bundle.manifest
        self.dtype = numpy_dtype(self.manifest.precision)
        self.embeddings = bundle.embedding_table()
        self.text_query = TextQuery(self.question_row)
        self._runners: dict[str, Runner] = {}
        weighted = [stage.graph for stage in (*self.manifest.vision, *self.manifest.decoder)]
        if self.manifest.projector is not None:
            weighted.append(self.manifest.projector.graph)
        for graph in (*weighted, self.manifest.assemble, *self.manifest.lm_head):
            self.runner(graph)

    def runner(self, graph: str) -> Runner:
        """The loaded graph of a file."""
        if graph not in self._runners:
            self._runners[graph] = self.backend.load(self.bundle.path(graph))
        return self._runners[graph]

    def encode(
        self,
        pixel_values: NDArray[np.float32],
        budget: Budget,
        layout: LayoutBudget,
        recorder: Recorder,
        query_ids: Sequence[int] | None = None,
    ) -> Visual:
        """Visual tokens of pixels ``[tiles, 3, H, W]``; ``query_ids`` is the question alone."""
        reductions = {reduction.site: reduction for reduction in budget.vision}
        tiles, tokens = len(pixel_values), self.manifest.vision_tokens
        origins = Origins.whole(tiles, tokens)
        kept: list[Value] = []
        flow = VisionFlow(self.backend, pixel_values.astype(self.dtype))

        def reduce_at(site: str | None) -> None:
            nonlocal tokens
            reduction = reductions.get(site or "")
            if reduction is None:
                return
            with recorder.span(reduction.site, "vision", tiles * tokens):
                out = flow.run(self.runner(reduction.graph), reduction.inputs)
            recorder.show(reduction.site, flow.main)
            recorder.show_places(reduction.site, out)
            kept.append(out["places"])
            tokens = reduction.tokens_out

        reduce_at(PIXELS)
        for stage in self.manifest.vision:
            with recorder.span(stage.name, "vision", tiles * tokens):
                flow.run(self.runner(stage.graph), stage.inputs)
            recorder.show(stage.name, flow.main)
            reduce_at(stage.site)
        hidden = flow.main
        if self.manifest.projector is not None:
            hidden = self._project(self.manifest.projector, hidden, query_ids, recorder)
            origins = Origins.whole(*self.backend.shape(hidden)[:2])
        if layout.packer is not None:
            with recorder.span("packer", "vision", tiles * tokens):
                hidden = self.runner(layout.packer)({"features": hidden})["visual"]
            recorder.show("packer", hidden)
            origins = Origins.whole(*self.backend.shape(hidden)[:2])
        else:
            # Fetched last: a device that works behind the host is not waited for in between.
            for places in kept:
                origins = origins.keep(self.backend.fetch(places))
        return Visual(hidden, origins)

    def prefill(
        self,
        runs: Sequence[Sequence[int]],
        visual: Visual | None,
        layout: LayoutBudget | None,
        answer_tokens: int,
        recorder: Recorder,
    ) -> tuple[DecodeState, NDArray[np.float32]]:
        """Fill the caches with a prompt.

        Args:
            runs: Text token ids around the images, n+1 runs.
            visual: What ``encode`` gives, or None when there is no image.
            layout: Decoder side of the budget, or None when there is no image.
            answer_tokens: Rows to leave in the caches for the answer.
            recorder: Takes the timings.

        Returns:
            State for decoding and the last token's logits ``[vocab]``.
        """
        lengths = [len(run) for run in runs]
        text = np.concatenate([np.asarray(run, np.int64) for run in runs])
        per_image = 0 if layout is None else layout.tokens_in
        placed = place_tokens(lengths, np.arange(len(text), dtype=np.int64), len(text), per_image)
        with recorder.step("embedding", "prefill", len(text)):
            rows = self.backend.put(self.embeddings[text][None])
        if visual is not None and layout is not None and layout.projected is not None:
            visual = self._reduce_projected(layout.projected, visual, rows, recorder)
        hidden = self._assemble(rows, visual, placed, recorder)
        sites = {} if layout is None else {part.site: part for part in layout.decoder}
        ids, next_position = position_ids(lengths, None if visual is None else visual.origins)
        positions = self.backend.put(ids[None])
        groups: list[kv_cache.LayerGroup] = []
        site, query, keys = None, None, None
        for stage in self.manifest.decoder:
            if site is not None:
                reduction = sites[site]
                feeds = {"hidden": hidden, "query": query, "key": keys, "position_ids": positions}
                if visual is not None:
                    feeds |= {"text_embeds": rows, "visual_embeds": visual.tokens}
                placed, hidden, positions = self._reduce(
                    reduction, lengths, placed, feeds, recorder
                )
            group = self._allocate(stage, len(placed.order) + answer_tokens)
            groups.append(group)
            hidden, query = self._run_stage(stage, group, hidden, positions, recorder, "prefill")
            site = stage.site if stage.site in sites else None
            if site is not None:
                keys = group.keys(stage.last_layer - 1, self.backend)
        return DecodeState(groups, next_position), self._logits(hidden, recorder, "prefill")

    def step(self, state: DecodeState, token: int, recorder: Recorder) -> NDArray[np.float32]:
        """Feed one token; logits ``[vocab]`` of the next."""
        with recorder.step("embedding", "decode", 1):
            hidden = self.backend.put(self.embeddings[token][None, None])
        positions = self.backend.put(np.array([[state.position]], np.int64))
        for stage, group in zip(self.manifest.decoder, state.groups, strict=True):
            hidden, _ = self._run_stage(stage, group, hidden, positions, recorder, "decode")
        state.position += 1
        return self._logits(hidden, recorder, "decode")

    def question_row(self, token_ids: Sequence[int]) -> Row:
        """The last row ``[1, 1, C]`` at the end of the decoder, of text alone; caches are let go."""
        count, silent = len(token_ids), Recorder()
        hidden = self.backend.put(self.embeddings[list(token_ids)][None])
        positions = self.backend.put(np.arange(count, dtype=np.int64)[None])
        for stage in self.manifest.decoder:
            group = self._allocate(stage, count)
            hidden, _ = self._run_stage(stage, group, hidden, positions, silent, "prefill")
        # A copy, so that the rows of the whole question are not kept.
        row: Row = self.backend.fetch(hidden)[:, -1:].copy()
        return row

    def _project(
        self,
        projector: Projector,
        features: Value,
        query_ids: Sequence[int] | None,
        recorder: Recorder,
    ) -> Value:
        feeds = {"features": features}
        if projector.reads_text:
            with recorder.span("query", "prefill", len(query_ids or ())):
                feeds["query"] = self.backend.put(self.text_query(query_ids))
            recorder.show("query", feeds["query"])
        images, patches, _ = self.backend.shape(features)
        with recorder.span("projector", "vision", images * patches):
            visual = self.runner(projector.graph)(feeds)["visual"]
        recorder.show("projector", visual)
        return visual

    def _assemble(
        self,
        rows: Value,
        visual: Visual | None,
        placed: Placed,
        recorder: Recorder,
    ) -> Value:
        if visual is None:
            return rows
        feeds = {"text": rows, "visual": visual.tokens, "order": self.backend.put(placed.order)}
        with recorder.span("assemble", "prefill", len(placed.order)):
            hidden = self.runner(self.manifest.assemble)(feeds)["hidden"]
        recorder.show("assemble", hidden)
        return hidden

    def _reduce_projected(
        self, reduction: Reduction, visual: Visual, text: Value, recorder: Recorder
    ) -> Visual:
        images, count, _ = self.backend.shape(visual.tokens)
        feeds = {"visual": visual.tokens, "text": text}
        with recorder.span(reduction.site, "prefill", images * count):
            out = self.runner(reduction.graph)({name: feeds[name] for name in reduction.inputs})
        recorder.show(reduction.site, out["visual_out"])
        recorder.show_places(reduction.site, out)
        origins = visual.origins.keep(self.backend.fetch(out["places"]))
        return Visual(out["visual_out"], origins)

    def _allocate(self, stage: Subgraph, capacity: int) -> kv_cache.LayerGroup:
        text, layout = self.manifest.text, self.manifest.kv_layout
        capacity = self.runner(stage.graph).cache_rows(capacity)
        return kv_cache.allocate(stage, capacity, text, layout, self.dtype, self.backend)

    def _reduce(
        self,
        reduction: Reduction,
        lengths: Sequence[int],
        placed: Placed,
        known: dict[str, Value],
        recorder: Recorder,
    ) -> tuple[Placed, Value, Value]:
        count = len(placed.order)
        after = place_tokens(lengths, placed.text, count, reduction.tokens_out)
        places = {"visual_index": placed.visual, "order": after.order, "text_index": placed.text}
        feeds = {name: known[name] for name in reduction.inputs if name in known}
        feeds |= {
            name: self.backend.put(index)
            for name, index in places.items()
            if name in reduction.inputs
        }
        with recorder.span(reduction.site, "prefill", count):
            out = self.runner(reduction.graph)(feeds)
        recorder.show(reduction.site, out["hidden_out"])
        recorder.show_places(reduction.site, out)
        return after, out["hidden_out"], out["position_ids_out"]

    def _run_stage(
        self,
        stage: Subgraph,
        group: kv_cache.LayerGroup,
        hidden: Value,
        positions: Value,
        recorder: Recorder,
        phase: str,
    ) -> tuple[Value, Value | None]:
        count = self.backend.shape(hidden)[1]
        caches, bound = group.bind(count, self.backend)
        feeds = {**caches, "hidden": hidden, "position_ids": positions}
        with recorder.span(stage.name, phase, count):
            out = self.runner(stage.graph)(feeds, bound)
        recorder.show(stage.name, out["hidden_out"])
        group.length += count
        return out["hidden_out"], out.get("query")

    def _logits(self, hidden: Value, recorder: Recorder, phase: str) -> NDArray[np.float32]:
        # Split along the vocabulary, the head is several graphs; the host joins their logits.
        with recorder.span("lm_head", phase, 1):
            outs = [self.runner(graph)({"hidden": hidden}) for graph in self.manifest.lm_head]
            parts = [self.backend.fetch(out["logits"])[0] for out in outs]
            logits: NDArray[np.float32] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if recorder.on_stage is not None:
            recorder.show("lm_head", self.backend.put(logits[None]))
        return logits
