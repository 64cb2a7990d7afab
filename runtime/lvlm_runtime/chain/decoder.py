"""A prompt to its first logits, one token to the next, over caches that are written in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.backends import Backend, Value
from lvlm_runtime.bundle.manifest import SEEN_TO, SIZE_BIAS, LayoutBudget, Subgraph
from lvlm_runtime.bundle.route import Step, prompt_steps
from lvlm_runtime.chain import kv_cache
from lvlm_runtime.chain.loaded import LoadedGraphs
from lvlm_runtime.chain.planes import PlaneFeeds
from lvlm_runtime.chain.recorder import Recorder, Reduced
from lvlm_runtime.chain.text_query import Row
from lvlm_runtime.chain.visible import seen_in_prompt, seen_rows
from lvlm_runtime.chain.vision import Visual
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.sequence import (
    Indices,
    Origins,
    Placed,
    place_tokens,
    position_rows,
    text_positions,
)

Logits = NDArray[np.float32]


@dataclass
class DecodeState:
    """What decoding carries from token to token.

    Attributes:
        groups: Caches, one per decoder stage.
        position: RoPE position of the next token; continues the unreduced prompt.
    """

    groups: list[kv_cache.LayerGroup]
    position: int

    def roll_back(self, rows: int, backend: Backend) -> None:
        """Forget the last ``rows`` tokens of text, which every stage holds whatever was reduced."""
        for group in self.groups:
            group.truncate(group.length - rows, backend)
        self.position -= rows


@dataclass
class _Prompt:
    """A prompt on its way through the decoder.

    Attributes:
        lengths: Of the text runs around the images.
        text: ``[1, T, C]``, the text as it entered.
        visual: The images' tokens as they entered; None without images.
        placed: Where text and images stand now.
        hidden: ``[1, S, C]``; None until text and images are put together.
        positions: ``[R, S]``; None as long as ``hidden`` is.
        places: The same on the host, ``[S]``, where layers have a window.
        origins: Where the images' tokens that are left stood; None without images.
        sizes: ``[n, V]``, patches that the images' tokens stand for now, where they are counted.
        query: ``[1, H, S, D]`` of the last layer before a site.
        group: Caches of the last decoder subgraph.
    """

    lengths: list[int]
    text: Value
    visual: Visual | None
    placed: Placed
    hidden: Value = None
    positions: Value = None
    places: Indices | None = None
    origins: Origins | None = None
    sizes: NDArray[np.floating] | None = None
    query: Value | None = None
    group: kv_cache.LayerGroup | None = None

    def row_sizes(self) -> NDArray[np.floating] | None:
        """``[S]``, patches that every token stands for, text as one; None where all are one."""
        if self.sizes is None:
            return None
        rows = np.ones(len(self.placed.order), np.float32)
        rows[self.placed.visual] = self.sizes
        return rows

    def keep(self, places: Indices) -> None:
        """Let ``sizes`` and ``origins`` be those of the tokens at ``places [n, K]``."""
        if self.origins is not None:
            self.origins = self.origins.keep(places)
        if self.sizes is not None:
            self.sizes = np.take_along_axis(self.sizes, places, axis=1)


class Decoder:
    """Decoder subgraphs, their reducers and the head.

    Args:
        graphs: The loaded graphs.
    """

    def __init__(self, graphs: LoadedGraphs) -> None:
        self.graphs = graphs
        self.backend = graphs.backend
        self.manifest = graphs.manifest
        self.planes = PlaneFeeds(graphs)

    def prefill(
        self,
        runs: Sequence[Sequence[int]],
        visual: Visual | None,
        part: LayoutBudget | None,
        answer_tokens: int,
        recorder: Recorder,
    ) -> tuple[DecodeState, Logits]:
        """Fill the caches with a prompt.

        Args:
            runs: Text token ids around the images, n+1 runs.
            visual: What the vision encoder gives, or None when there is no image.
            part: Decoder side of the budget, or None when there is no image.
            answer_tokens: Rows to leave in the caches for the answer.
            recorder: Takes the timings.

        Returns:
            State for decoding and the last token's logits ``[vocab]``.
        """
        prompt = self._begin(runs, visual, part, recorder)
        groups: list[kv_cache.LayerGroup] = []
        next_position = 0
        for step in prompt_steps(self.manifest, part):
            if step.kind == "reducer" and step.stage == "projected":
                self._reduce_projected(step, prompt, recorder)
            elif step.kind == "assemble":
                self._assemble(step, prompt, recorder)
            elif step.kind == "decoder":
                assert step.subgraph is not None
                if prompt.positions is None:
                    # Every reduction before the decoder has run: now the positions are known.
                    next_position = self._set_positions(prompt)
                rows = len(prompt.placed.order) + answer_tokens
                group = self.allocate(step.subgraph, rows, prompt.row_sizes())
                groups.append(group)
                self._run_in_prompt(step.subgraph, group, prompt, recorder)
            elif step.kind == "reducer":
                self._reduce(step, prompt, recorder)
        return DecodeState(groups, next_position), self.logits(prompt.hidden, recorder, "prefill")[
            0
        ]

    def step(self, state: DecodeState, token: int, recorder: Recorder) -> Logits:
        """Feed one token; logits ``[vocab]`` of the next."""
        logits: Logits = self.extend(state, (token,), recorder)[0]
        return logits

    def extend(
        self,
        state: DecodeState,
        tokens: Sequence[int],
        recorder: Recorder,
        *,
        every_row: bool = False,
        phase: str = "decode",
    ) -> Logits:
        """Feed tokens of text behind what the caches hold, in one call of every graph.

        Args:
            state: Caches with room for them; it moves on. ``DecodeState.roll_back`` takes tokens back.
            tokens: S ids.
            recorder: Takes the timings.
            every_row: Logits of what follows every token, and not only the last.
            phase: What the time is counted for.

        Returns:
            ``[S, vocab]``, or ``[1, vocab]``.

        Raises:
            LvlmError: They do not fit into the caches; nothing has run.
        """
        for group in state.groups:
            if group.length + len(tokens) > group.capacity:
                raise LvlmError(
                    f"{len(tokens)} tokens behind {group.length} do not fit into a cache of"
                    f" {group.capacity} rows; ask for a shorter answer (--max-new-tokens)"
                )
        with recorder.step("embedding", phase, len(tokens)):
            hidden = self.backend.put(self.graphs.embeddings.rows(tokens)[None])
        rows = self.manifest.text.position_rows
        following = text_positions(state.position, len(tokens), rows)
        positions = self.backend.put(following)
        for stage, group in zip(self.manifest.decoder, state.groups, strict=True):
            hidden, _ = self.run_stage(
                stage, group, hidden, positions, recorder, phase, places=following[0]
            )
        state.position += len(tokens)
        return self.logits(hidden, recorder, phase, every_row)

    def last_row(self, token_ids: Sequence[int]) -> Row:
        """The last row ``[1, 1, C]`` at the end of the decoder, of text alone; keeps no caches."""
        count, silent = len(token_ids), Recorder()
        hidden = self.backend.put(self.graphs.embeddings.rows(token_ids)[None])
        positions = self.backend.put(np.arange(count, dtype=np.int64)[None])
        for stage in self.manifest.decoder:
            group = self.allocate(stage, count)
            hidden, _ = self.run_stage(stage, group, hidden, positions, silent, "prefill")
        # A copy, so that the rows of the whole question are not kept.
        row: Row = self.backend.fetch(hidden)[:, -1:].copy()
        return row

    def allocate(
        self, stage: Subgraph, rows: int, sizes: NDArray[np.floating] | None = None
    ) -> kv_cache.LayerGroup:
        """Caches of a decoder subgraph, of as many rows as its runner needs for ``rows``.

        ``sizes [S]``: as of ``kv_cache.allocate``.
        """
        text, layout = self.manifest.text, self.manifest.kv_layout
        rows = self.graphs.runner(stage.graph).cache_rows(rows)
        dtype, backend = self.graphs.dtype, self.backend
        return kv_cache.allocate(stage, rows, text, layout, dtype, backend, sizes)

    def _begin(
        self,
        runs: Sequence[Sequence[int]],
        visual: Visual | None,
        part: LayoutBudget | None,
        recorder: Recorder,
    ) -> _Prompt:
        lengths = [len(run) for run in runs]
        text = np.concatenate([np.asarray(run, np.int64) for run in runs])
        per_image = 0 if part is None else part.tokens_in
        placed = place_tokens(lengths, np.arange(len(text), dtype=np.int64), len(text), per_image)
        with recorder.step("embedding", "prefill", len(text)):
            rows = self.backend.put(self.graphs.embeddings.rows(text.tolist())[None])
        # Text alone is in order as it is.
        prompt = _Prompt(lengths, rows, visual, placed)
        if visual is None:
            return replace(prompt, hidden=rows)
        return replace(prompt, origins=visual.origins, sizes=visual.sizes)

    def _reduce_projected(self, step: Step, prompt: _Prompt, recorder: Recorder) -> None:
        visual = prompt.visual
        assert visual is not None
        images, count, _ = self.backend.shape(visual.tokens)
        known = {"visual": visual.tokens, "text": prompt.text}
        feeds = {name: known[name] for name in step.inputs}
        runner = self.graphs.runner(step.graph)
        with recorder.span(step.name, "prefill", images * count):
            out = runner(feeds)
        recorder.show(step.name, out["visual_out"])
        recorder.show_reduction(step.name, Reduced(runner, feeds, out))
        places = self.backend.fetch(out["places"])
        prompt.keep(places)
        prompt.visual = replace(visual, tokens=out["visual_out"])

    def _assemble(self, step: Step, prompt: _Prompt, recorder: Recorder) -> None:
        if prompt.visual is None:
            return
        order = self.backend.put(prompt.placed.order)
        feeds = {"text": prompt.text, "visual": prompt.visual.tokens, "order": order}
        with recorder.span(step.name, "prefill", len(prompt.placed.order)):
            prompt.hidden = self.graphs.runner(step.graph)(feeds)["hidden"]
        recorder.show(step.name, prompt.hidden)

    def _set_positions(self, prompt: _Prompt) -> int:
        """RoPE positions of the prompt; returns the position of the first token after it."""
        rows, grid = self.manifest.text.position_rows, self.manifest.grid
        ids, following = position_rows(prompt.lengths, prompt.origins, rows, grid)
        prompt.positions = self.backend.put(ids)
        prompt.places = ids[0] if self.manifest.text.window else None
        return following

    def _run_in_prompt(
        self, stage: Subgraph, group: kv_cache.LayerGroup, prompt: _Prompt, recorder: Recorder
    ) -> None:
        hidden, positions = prompt.hidden, prompt.positions
        planes: dict[str, Value] = {}
        if prompt.visual is not None and prompt.origins is not None:
            known, offsets = prompt.visual.planes, prompt.origins.offsets
            count, visual = len(prompt.placed.order), prompt.placed.visual
            planes = self.planes.of_rows(stage, known, count, visual, offsets, recorder)
        seen = None
        if SEEN_TO in stage.inputs:
            rows, visual = len(prompt.placed.order), prompt.placed.visual
            seen = seen_in_prompt(self.manifest.text.attention, rows, visual)
        ran = self.run_stage(
            *(stage, group, hidden, positions, recorder, "prefill", planes, seen, prompt.places)
        )
        prompt.hidden, prompt.query = ran
        prompt.group = group

    def _reduce(self, step: Step, prompt: _Prompt, recorder: Recorder) -> None:
        """At the input of a layer: fewer rows and their positions, in a new order."""
        count = len(prompt.placed.order)
        after = place_tokens(prompt.lengths, prompt.placed.text, count, step.tokens_out)
        places = {
            "visual_index": prompt.placed.visual,
            "order": after.order,
            "text_index": prompt.placed.text,
        }
        assert prompt.group is not None
        assert step.subgraph is not None
        known = {
            "hidden": prompt.hidden,
            "query": prompt.query,
            "key": prompt.group.keys(step.subgraph.last_layer - 1, self.backend),
            "position_ids": prompt.positions,
            "text_embeds": prompt.text,
        }
        if prompt.visual is not None:
            known["visual_embeds"] = prompt.visual.tokens
        if SIZE_BIAS in step.inputs:
            known[SIZE_BIAS] = prompt.group.sizes(count, self.backend)
        feeds = {name: known[name] for name in step.inputs if name in known}
        feeds |= {
            name: self.backend.put(index) for name, index in places.items() if name in step.inputs
        }
        runner = self.graphs.runner(step.graph)
        with recorder.span(step.name, "prefill", count):
            out = runner(feeds)
        recorder.show(step.name, out["hidden_out"])
        recorder.show_reduction(step.name, Reduced(runner, feeds, out))
        # What follows does not ask for them, and then the host does not wait for the device.
        if prompt.sizes is not None or (prompt.visual is not None and prompt.visual.planes):
            prompt.keep(self._places(out, len(prompt.placed.visual)))
        prompt.placed = after
        prompt.hidden, prompt.positions = out["hidden_out"], out["position_ids_out"]
        if prompt.places is not None:
            prompt.places = self.backend.fetch(prompt.positions)[0]

    def _places(self, out: Mapping[str, Value], images: int) -> Indices:
        """``[n, K]`` that a reducer kept; where nothing stays its graph does not say so."""
        if "places" not in out:
            return np.zeros((images, 0), np.int64)
        places: Indices = self.backend.fetch(out["places"])
        return places

    def run_stage(
        self,
        stage: Subgraph,
        group: kv_cache.LayerGroup,
        hidden: Value,
        positions: Value,
        recorder: Recorder,
        phase: str,
        planes: Mapping[str, Value] | None = None,
        seen: Indices | None = None,
        places: Indices | None = None,
    ) -> tuple[Value, Value | None]:
        """Run a decoder subgraph on ``hidden [1, S, C]``: its hidden states and last query.

        ``planes``: what its layers add, ``[1, S, C]`` each; none where all rows are text. ``seen [S]``:
        how many rows each of them sees, for a subgraph that asks; None for those before it. ``places
        [S]``: ``positions`` on the host, for a subgraph whose layers have a window.
        """
        count = self.backend.shape(hidden)[1]
        caches, bound = group.bind(count, self.backend)
        feeds = {**caches, "hidden": hidden, "position_ids": positions, **(planes or {})}
        if stage.planes and not planes:
            feeds |= dict.fromkeys(stage.planes, self.planes.nothing(count))
        window = self.manifest.text.window
        for name, rows in seen_rows(stage.inputs, group, count, seen, places, window).items():
            feeds[name] = self.backend.put(rows)
        with recorder.span(stage.name, phase, count):
            out = self.graphs.runner(stage.graph)(feeds, bound)
        recorder.show(stage.name, out["hidden_out"])
        group.length += count
        return out["hidden_out"], out.get("query")

    def logits(
        self, hidden: Value, recorder: Recorder, phase: str, every_row: bool = False
    ) -> Logits:
        """Logits ``[S, vocab]`` of ``hidden [1, S, C]``, or ``[1, vocab]`` of its last row."""
        count = self.backend.shape(hidden)[1]
        if count > 1 and not every_row:
            hidden, count = self.backend.rows(hidden, count - 1, count), 1
        with recorder.span("lm_head", phase, count):
            logits = self._head(hidden)
            if len(logits) < count:
                # The head of a bundle of before gives the last row of what it takes.
                rows = (self.backend.rows(hidden, row, row + 1) for row in range(count))
                logits = np.concatenate([self._head(row) for row in rows])
        if recorder.on_stage is not None:
            recorder.show("lm_head", self.backend.put(logits))
        return logits

    def _head(self, hidden: Value) -> Logits:
        # Split along the vocabulary, the head is several graphs; the host joins their logits.
        outs = [self.graphs.runner(graph)({"hidden": hidden}) for graph in self.manifest.lm_head]
        parts = [self.backend.fetch(out["logits"]) for out in outs]
        logits: Logits = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        return logits
