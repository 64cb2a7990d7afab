"""A prompt behind what the caches hold already: its new rows, in one piece or in chunks.

A reducer in the decoder reads all rows of its prompt: the last one's attention over everything before
it, the text's, a picture's tokens. So before a site that reduces, the rows that left its subgraph are
held on the host beside the caches; new rows join them, the reducer sees the prompt as a fresh session
would give it, and what follows the site is computed again. Nothing in a reducer needs to know that
some rows are of an earlier call, and answers are those of a fresh session for every method.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lvlm_runtime.backends import Value
from lvlm_runtime.bundle.manifest import CAUSAL, SIZE_BIAS, Manifest, Reduction, Subgraph
from lvlm_runtime.chain.decoder import Decoder, Logits
from lvlm_runtime.chain.entering import PromptInput
from lvlm_runtime.chain.held import (
    Element,
    Held,
    HeldStage,
    ImagePrompt,
    Rows,
    reduced_elements,
    rows_of,
)
from lvlm_runtime.chain.recorder import Recorder, Reduced
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.sequence import Indices, Spans, place_rows

Source = Callable[[int, int], Value]


@dataclass
class _Segment:
    """Decoder subgraphs up to a site where pictures of a prompt are reduced, or to the end.

    Attributes:
        stages: Index among the decoder's, and the subgraph.
        cuts: Picture -> what is done to it behind them.
    """

    stages: list[tuple[int, Subgraph]]
    cuts: dict[int, Reduction]


@dataclass
class _Flow:
    """A prompt on its way.

    Attributes:
        elements: At the input of the segment.
        spans: Where its text and pictures stand there.
        positions: ``[R, S]`` RoPE positions.
        sizes: ``[S]`` patches per row, where they are counted.
        source: Hidden states of rows [a, b) at the input of the segment.
        kept: Picture -> which of the tokens that entered the decoder are left; one that is not
            here has all of them.
    """

    elements: list[Element]
    spans: Spans
    positions: Indices
    sizes: Rows | None
    source: Source
    kept: dict[int, Indices] = field(default_factory=dict)


class Continuation:
    """Fills the caches of a decoder with prompts, one behind the other.

    Args:
        decoder: Whose graphs run.
        prompt: The whole prompt, what is held of it included.
        recorder: Takes the timings.
        chunk: Most rows of one call of a graph; None for all at once.
    """

    def __init__(
        self, decoder: Decoder, prompt: ImagePrompt, recorder: Recorder, chunk: int | None
    ) -> None:
        self.decoder = decoder
        self.backend = decoder.backend
        self.manifest = decoder.manifest
        self.prompt = prompt
        self.recorder = recorder
        self.chunk = chunk
        self.lengths = [len(run) for run in prompt.runs]
        self.entering = PromptInput(decoder, prompt, recorder)

    def begin(self, held: Held) -> None:
        """As ``fill``, up to the first site that reduces: what no question changes."""
        segment = self._segments()[0]
        elements = self.prompt.elements()
        known = self._known(segment, held, elements, last=False)
        for each, _ in segment.stages:
            held.stages[each].truncate(known, self.backend)
        self._run(segment, held, self._enter(elements, held))

    def fill(self, held: Held) -> tuple[Logits, int]:
        """Compute what is new of the prompt.

        Args:
            held: Of an earlier prompt; it becomes that of this one.

        Returns:
            The last token's logits ``[vocab]``, and how many rows at the decoder's input were held.
        """
        segments = self._segments()
        elements = self.prompt.elements()
        flow, reused = None, 0
        for index, segment in enumerate(segments):
            if flow is not None:
                elements = flow.elements
            known = self._known(segment, held, elements, index == len(segments) - 1)
            for each, _ in segment.stages:
                held.stages[each].truncate(known, self.backend)
            if flow is None:
                reused = rows_of(elements[:known])
                flow = self._enter(elements, held)
            hidden, query = self._run(segment, held, flow)
            if segment.cuts:
                flow = self._reduce(segment, held, flow, hidden, query)
        logits = self.decoder.logits(hidden, self.recorder, "prefill")[0]
        return logits, reused

    def _segments(self) -> list[_Segment]:
        segments = [_Segment([], {})]
        for index, stage in enumerate(self.manifest.decoder):
            segments[-1].stages.append((index, stage))
            cuts = {
                number: cut
                for number, image in enumerate(self.prompt.images)
                for cut in image.part.decoder
                if cut.site == stage.site
            }
            if cuts:
                segments[-1].cuts = cuts
                segments.append(_Segment([], {}))
        return segments

    def _known(self, segment: _Segment, held: Held, elements: list[Element], last: bool) -> int:
        """Elements that every subgraph of a segment holds."""
        counts = [
            held.stages[index].known(
                elements, bool(segment.cuts) and stage is segment.stages[-1][1]
            )
            for index, stage in segment.stages
        ]
        # The last row is computed for its logits.
        return min(*counts, len(elements) - last)

    def _enter(self, elements: list[Element], held: Held) -> _Flow:
        first = held.stages[0]
        spans, (positions, sizes, held.position) = (
            self.entering.spans,
            self.entering.place(first.positions, first.sizes),
        )
        return _Flow(elements, spans, positions, sizes, self.entering.rows)

    def _run(self, segment: _Segment, held: Held, flow: _Flow) -> tuple[Value, Value | None]:
        """New rows through the subgraphs of a segment.

        Returns:
            The last call's hidden states and query; before a site those of all rows.
        """
        stages = [(held.stages[index], stage) for index, stage in segment.stages]
        start, total = rows_of(stages[0][0].elements), flow.spans.total
        for each, _ in stages:
            if each.group.size_bias is not None and flow.sizes is not None:
                each.group.count_sizes(start, flow.sizes[start:], self.backend)
        hidden: Value = None
        query: Value | None = None
        # The graph that puts text and pictures together takes pictures of one size.
        assembled = segment.stages[0][0] == 0 or any(stage.planes for _, stage in stages)
        pieces = self._pieces(start, total, flow.spans if assembled else None)
        for first, stop in pieces:
            hidden = flow.source(first, stop)
            positions = self.backend.put(flow.positions[:, first:stop])
            for each, stage in stages:
                planes = self._planes(stage, flow, first, stop)
                hidden, query = self.decoder.run_stage(
                    stage, each.group, hidden, positions, self.recorder, "prefill", planes
                )
            if segment.cuts:
                self._keep(stages[-1][0], hidden, query)
        for each, _ in stages:
            each.elements, each.positions, each.sizes = (
                list(flow.elements),
                flow.positions,
                flow.sizes,
            )
        if segment.cuts and pieces != [(0, total)]:
            last = stages[-1][0]
            assert last.hidden is not None
            hidden = self.backend.put(last.hidden[None])
            query = None if last.query is None else self.backend.put(last.query[None])
        return hidden, query

    def _planes(self, stage: Subgraph, flow: _Flow, start: int, stop: int) -> dict[str, Value]:
        """What the layers of a subgraph add to rows [start, stop), which are of one picture at most."""
        inside = [
            n for n, at in enumerate(flow.spans.images) if at.start < stop and start < at.stop
        ]
        if not stage.planes or not inside:
            return {}
        (number,) = inside
        taken, visual = flow.spans.images[number], self.entering.visual(number)
        offsets = visual.origins.offsets[:, flow.kept.get(number, slice(None))]
        rows = np.arange(max(start, taken.start), min(stop, taken.stop), dtype=np.int64)
        return self.decoder.planes.of_rows(
            stage,
            visual.planes,
            stop - start,
            rows[None] - start,
            offsets[:, rows - taken.start],
            self.recorder,
        )

    def _pieces(self, start: int, total: int, spans: Spans | None) -> list[tuple[int, int]]:
        """Rows [start, total) in pieces of at most a chunk, each of one picture of ``spans`` at most."""
        breaks = () if spans is None else tuple(each.start for each in spans.images[1:])
        ends = sorted({start, total, *(row for row in breaks if start < row < total)})
        pieces: list[tuple[int, int]] = []
        for first, stop in itertools.pairwise(ends):
            step = self.chunk or stop - first
            pieces += [(row, min(row + step, stop)) for row in range(first, stop, step)]
        return pieces

    def _keep(self, stage: HeldStage, hidden: Value, query: Value | None) -> None:
        """Rows that left a subgraph before a site, for the prompts that follow."""
        rows = self.backend.fetch(hidden)[0]
        stage.hidden = rows if stage.hidden is None else np.concatenate([stage.hidden, rows])
        if query is not None:
            asked = self.backend.fetch(query)[0]
            before = stage.query
            stage.query = asked if before is None else np.concatenate([before, asked], axis=1)

    def _reduce(
        self, segment: _Segment, held: Held, flow: _Flow, hidden: Value, query: Value | None
    ) -> _Flow:
        """Behind a segment: every picture by its own budget, all of one budget at once."""
        index, stage = segment.stages[-1]
        graphs = dict.fromkeys(cut.graph for cut in segment.cuts.values())
        several = len(graphs) > 1
        kept = {number: cut.tokens_out for number, cut in segment.cuts.items()}
        counts = [kept.get(n, len(each)) for n, each in enumerate(flow.spans.images)]
        after = place_rows(self.lengths, counts)
        pictures = [i for i, (key, _) in enumerate(flow.elements) if not isinstance(key, int)]
        following = _Flow(
            reduced_elements(flow.elements, pictures, kept),
            after,
            np.zeros((len(flow.positions), after.total), np.int64),
            None if flow.sizes is None else np.ones(after.total, np.float32),
            flow.source,
            dict(flow.kept),
        )
        joined: Rows | None = None
        for graph in graphs:
            images = [n for n, cut in segment.cuts.items() if cut.graph == graph]
            cut = segment.cuts[images[0]]
            out, own = self._reduce_images(
                cut, stage, held.stages[index], images, flow, hidden, query
            )
            positions = self.backend.fetch(out["position_ids_out"])
            if several:
                rows = self.backend.fetch(out["hidden_out"])[0]
                joined = (
                    np.zeros((after.total, rows.shape[1]), rows.dtype) if joined is None else joined
                )
                joined[after.text] = rows[own.text]
            following.positions[:, after.text] = positions[:, own.text]
            # Where nothing stays the graph does not say so.
            none = np.zeros((len(images), 0), np.int64)
            places = self.backend.fetch(out["places"]) if "places" in out else none
            for n, chosen in zip(images, places, strict=True):
                known = flow.kept.get(n)
                following.kept[n] = chosen if known is None else known[chosen]
            for n, (old, new) in enumerate(zip(own.images, after.images, strict=True)):
                if n in images or n not in segment.cuts:
                    following.positions[:, new.start : new.stop] = positions[
                        :, old.start : old.stop
                    ]
                    if joined is not None:
                        joined[new.start : new.stop] = rows[old.start : old.stop]
                if following.sizes is None or flow.sizes is None:
                    continue
                before = flow.sizes[flow.spans.images[n].start : flow.spans.images[n].stop]
                if n not in segment.cuts:
                    following.sizes[new.start : new.stop] = before
                elif n in images:
                    chosen = places[images.index(n)]
                    following.sizes[new.start : new.stop] = before[chosen]
        whole: Value = out["hidden_out"] if joined is None else self.backend.put(joined[None])
        following.source = lambda first, stop: (
            whole if (first, stop) == (0, after.total) else self.backend.rows(whole, first, stop)
        )
        return following

    def _reduce_images(
        self,
        cut: Reduction,
        stage: Subgraph,
        held: HeldStage,
        images: list[int],
        flow: _Flow,
        hidden: Value,
        query: Value | None,
    ) -> tuple[dict[str, Value], Spans]:
        """Run a reducer on some pictures; all other rows stay."""
        spans = flow.spans
        counts = [cut.tokens_out if n in images else len(e) for n, e in enumerate(spans.images)]
        own = place_rows(self.lengths, counts)
        order = np.zeros(own.total, np.int64)
        order[own.text] = spans.text
        for n, (old, new) in enumerate(zip(spans.images, own.images, strict=True)):
            start = old.start
            if n in images:
                start = spans.total + images.index(n) * cut.tokens_out
            order[new.start : new.stop] = start + np.arange(len(new))
        visual = np.stack([np.arange(spans.images[n].start, spans.images[n].stop) for n in images])
        known: dict[str, Value] = {
            "hidden": hidden,
            "query": query,
            "key": held.group.keys(stage.last_layer - 1, self.backend),
        }
        hosted = {
            "position_ids": flow.positions,
            "visual_index": visual,
            "order": order,
            "text_index": spans.text,
        }
        known |= {n: self.backend.put(a) for n, a in hosted.items() if n in cut.inputs}
        if "text_embeds" in cut.inputs:
            known["text_embeds"] = self.entering.text
        if "visual_embeds" in cut.inputs:
            tokens = [self.backend.fetch(self.entering.visual(n).tokens)[0] for n in images]
            known["visual_embeds"] = self.backend.put(np.stack(tokens))
        if SIZE_BIAS in cut.inputs:
            known[SIZE_BIAS] = held.group.sizes(spans.total, self.backend)
        feeds = {name: known[name] for name in cut.inputs}
        runner = self.decoder.graphs.runner(cut.graph)
        with self.recorder.span(cut.site, "prefill", spans.total):
            out = runner(feeds)
        self.recorder.show(cut.site, out["hidden_out"])
        self.recorder.show_reduction(cut.site, Reduced(runner, feeds, out))
        return out, own


def check_continued(manifest: Manifest) -> None:
    """Prompts of this bundle can go on from caches that hold something.

    Raises:
        LvlmError: Rows of a prompt see others behind them.
    """
    if manifest.text.attention != CAUSAL:
        raise LvlmError(
            f"conversations, remembered pictures and prompts in chunks do not know"
            f" {manifest.family}'s attention yet, in which rows see others behind them; ask with"
            " session.generate or lvlm-export run, each question on its own"
        )


def empty(decoder: Decoder, capacity: int) -> Held:
    """Caches of ``capacity`` rows that hold nothing.

    Raises:
        LvlmError: The engines were built for fewer, or as of ``check_continued``.
    """
    check_continued(decoder.manifest)
    sized = decoder.manifest.sized
    stages = [
        HeldStage(
            decoder.allocate(stage, capacity),
            [],
            np.zeros((decoder.manifest.text.position_rows, 0), np.int64),
            np.ones(0, np.float32) if sized else None,
        )
        for stage in decoder.manifest.decoder
    ]
    return Held(stages, 0)
