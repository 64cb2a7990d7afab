"""The chain: pixels to features, prompt to logits, one token to the next logits.

Prefill: vision.0 -> reducer -> vision.1 -> … -> features -> (packer) -> assemble -> decoder.0 ->
reducer -> decoder.1 -> … -> lm_head. Decode: the decoder stages with one token and no reducer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime import kv_cache
from lvlm_runtime.backends import Backend, Runner, Value
from lvlm_runtime.bundle import Bundle
from lvlm_runtime.measure import Recorder
from lvlm_runtime.sequence import Origins, Placed, place, position_ids
from lvlm_runtime.spec import Budget, LayoutBudget, Reduction, Stage


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
        self.dtype = np.dtype(self.manifest.precision)
        self.embeddings = bundle.embedding_table()
        self._runners: dict[str, Runner] = {}
        weighted = [stage.graph for stage in (*self.manifest.vision, *self.manifest.decoder)]
        for graph in (*weighted, self.manifest.assemble, self.manifest.lm_head):
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
    ) -> Visual:
        """Visual tokens of pixels ``[tiles, 3, H, W]``."""
        reductions = {reduction.site: reduction for reduction in budget.vision}
        tiles, tokens = len(pixel_values), self.manifest.vision_tokens
        origins = Origins.whole(tiles, tokens)
        name, hidden = "pixel_values", self.backend.put(pixel_values.astype(self.dtype))
        for stage in self.manifest.vision:
            with recorder.span(stage.name, "vision", tiles * tokens):
                out = self.runner(stage.graph)({name: hidden})
            if stage.site is None:
                hidden = out["features"]
                recorder.show(stage.name, hidden)
                break
            name, hidden = "hidden", out["hidden_out"]
            recorder.show(stage.name, hidden)
            reduction = reductions.get(stage.site)
            if reduction is not None:
                feeds = {"hidden": hidden, "query": out["query"], "key": out["key"]}
                with recorder.span(reduction.site, "vision", tiles * tokens):
                    out = self.runner(reduction.graph)(feeds)
                hidden = out["hidden_out"]
                recorder.show(reduction.site, hidden)
                recorder.show_places(reduction.site, out)
                origins = origins.keep(self.backend.fetch(out["places"]))
                tokens = reduction.tokens_out
        if layout.packer is not None:
            with recorder.span("packer", "vision", tiles * tokens):
                hidden = self.runner(layout.packer)({"features": hidden})["visual"]
            recorder.show("packer", hidden)
            origins = Origins.whole(*self.backend.shape(hidden)[:2])
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
        placed = place(lengths, np.arange(len(text), dtype=np.int64), len(text), per_image)
        rows = self.backend.put(self.embeddings[text][None])
        if visual is not None and layout is not None and layout.projected is not None:
            visual = self._reduce_projected(layout.projected, visual, rows, recorder)
        hidden = self._assemble(rows, visual, placed, recorder)
        sites = {} if layout is None else {part.site: part for part in layout.decoder}
        ids, next_position = position_ids(lengths, None if visual is None else visual.origins)
        positions = self.backend.put(ids[None])
        groups: list[kv_cache.LayerGroup] = []
        site, query = None, None
        for stage in self.manifest.decoder:
            if site is not None:
                reduction = sites[site]
                placed, hidden, positions = self._reduce(
                    reduction, lengths, placed, hidden, query, groups[-1], positions, recorder
                )
            group = self._allocate(stage, len(placed.order) + answer_tokens)
            groups.append(group)
            hidden, query = self._run_stage(stage, group, hidden, positions, recorder, "prefill")
            site = stage.site if stage.site in sites else None
        return DecodeState(groups, next_position), self._logits(hidden, recorder, "prefill")

    def step(self, state: DecodeState, token: int, recorder: Recorder) -> NDArray[np.float32]:
        """Feed one token; logits ``[vocab]`` of the next."""
        hidden = self.backend.put(self.embeddings[token][None, None])
        positions = self.backend.put(np.array([[state.position]], np.int64))
        for stage, group in zip(self.manifest.decoder, state.groups, strict=True):
            hidden, _ = self._run_stage(stage, group, hidden, positions, recorder, "decode")
        state.position += 1
        return self._logits(hidden, recorder, "decode")

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

    def _allocate(self, stage: Stage, capacity: int) -> kv_cache.LayerGroup:
        return kv_cache.allocate(stage, capacity, self.manifest.text, self.dtype, self.backend)

    def _reduce(
        self,
        reduction: Reduction,
        lengths: Sequence[int],
        placed: Placed,
        hidden: Value,
        query: Value,
        scored: kv_cache.LayerGroup,
        positions: Value,
        recorder: Recorder,
    ) -> tuple[Placed, Value, Value]:
        count = len(placed.order)
        after = place(lengths, placed.text, count, reduction.tokens_out)
        last_layer = max(int(name.rsplit(".", 1)[1]) for name in scored.feeds)
        feeds = {
            "hidden": hidden,
            "query": query,
            "key": scored.feeds[f"past_key.{last_layer}"],
            "position_ids": positions,
            "visual_index": self.backend.put(placed.visual),
            "order": self.backend.put(after.order),
        }
        if "text_index" in reduction.inputs:
            feeds["text_index"] = self.backend.put(placed.text)
        with recorder.span(reduction.site, "prefill", count):
            out = self.runner(reduction.graph)(feeds)
        recorder.show(reduction.site, out["hidden_out"])
        recorder.show_places(reduction.site, out)
        return after, out["hidden_out"], out["position_ids_out"]

    def _run_stage(
        self,
        stage: Stage,
        group: kv_cache.LayerGroup,
        hidden: Value,
        positions: Value,
        recorder: Recorder,
        phase: str,
    ) -> tuple[Value, Value | None]:
        count = self.backend.shape(hidden)[1]
        feeds = {
            **group.feeds,
            "hidden": hidden,
            "position_ids": positions,
            "write_index": self.backend.put(np.array([group.length], np.int64)),
            "kv_length": self.backend.put(np.array([group.length + count], np.int64)),
        }
        with recorder.span(stage.name, phase, count):
            out = self.runner(stage.graph)(feeds, group.bound)
        recorder.show(stage.name, out["hidden_out"])
        group.length += count
        return out["hidden_out"], out.get("query")

    def _logits(self, hidden: Value, recorder: Recorder, phase: str) -> NDArray[np.float32]:
        with recorder.span("lm_head", phase, 1):
            out = self.runner(self.manifest.lm_head)({"hidden": hidden})
            logits: NDArray[np.float32] = self.backend.fetch(out["logits"])[0]
        recorder.show("lm_head", out["logits"])
        return logits
