"""Text and pictures of a prompt as they enter the decoder, any rows of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lvlm_runtime.backends import Value
from lvlm_runtime.bundle.manifest import Reduction
from lvlm_runtime.chain.decoder import Decoder
from lvlm_runtime.chain.held import ImagePrompt, Rows
from lvlm_runtime.chain.recorder import Recorder, Reduced
from lvlm_runtime.chain.vision import Visual
from lvlm_runtime.prompt.sequence import (
    Indices,
    image_positions,
    image_span,
    place_rows,
    text_positions,
)


class PromptInput:
    """A prompt at the decoder's input; pictures are asked for where their rows are.

    Args:
        decoder: What it is for.
        prompt: Text and pictures.
        recorder: Takes the timings.

    Attributes:
        spans: Where text and pictures stand.
    """

    def __init__(self, decoder: Decoder, prompt: ImagePrompt, recorder: Recorder) -> None:
        self.decoder = decoder
        self.backend = decoder.backend
        self.prompt = prompt
        self.recorder = recorder
        counts = [image.part.tokens_in for image in prompt.images]
        self.spans = place_rows([len(run) for run in prompt.runs], counts)
        self._ids = np.asarray(prompt.text, np.int64)
        self._visual: dict[int, Visual] = {}
        self._text: Value | None = None

    def place(self, positions: Indices, sizes: Rows | None) -> tuple[Indices, Rows | None, int]:
        """What belongs to every row; of pictures that are held whole nothing is asked for.

        Args:
            positions: ``[R, H]`` RoPE positions of the rows that are held.
            sizes: ``[H]`` patches that each stands for, where they are counted.

        Returns:
            The same of all rows, ``[R, S]`` and ``[S]``, and the position behind the prompt.
        """
        (rows, held), spans, grid = positions.shape, self.spans, self.decoder.manifest.grid
        every = np.zeros((rows, spans.total), np.int64)
        weights = None if sizes is None else np.ones(spans.total, np.float32)
        position = row = 0
        for number, run in enumerate(self.prompt.runs):
            every[:, row : row + len(run)] = text_positions(position, len(run), rows)
            row, position = row + len(run), position + len(run)
            if number == len(self.prompt.images):
                break
            taken = spans.images[number]
            if taken.stop > held:
                visual = self.visual(number)
                stood = image_positions(visual.origins.offsets[0], rows, grid)
                every[:, taken.start : taken.stop] = position + stood
                if weights is not None and visual.sizes is not None:
                    weights[taken.start : taken.stop] = visual.sizes[0]
            span = image_span(self.prompt.images[number].part.span, rows, grid)
            row, position = taken.stop, position + span
        every[:, :held] = positions
        if weights is not None and sizes is not None:
            weights[:held] = sizes
        return every, weights, position

    def rows(self, start: int, stop: int) -> Value:
        """``[1, stop - start, C]``, rows with one picture among them at most."""
        spans = self.spans
        inside = [n for n, at in enumerate(spans.images) if at.start < stop and start < at.stop]
        text = spans.text[(spans.text >= start) & (spans.text < stop)]
        # The graph that puts both together takes one row of text at least.
        ids = self._ids[np.searchsorted(spans.text, text)] if len(text) else self._ids[:1]
        with self.recorder.step("embedding", "prefill", len(text)):
            embedded = self.decoder.graphs.embeddings.rows(ids.tolist())[None]
            hidden = self.backend.put(embedded)
        if not inside:
            return hidden
        (number,) = inside
        taken = spans.images[number]
        order = np.zeros(stop - start, np.int64)
        order[text - start] = np.arange(len(text))
        within = np.arange(max(start, taken.start), min(stop, taken.stop), dtype=np.int64)
        order[within - start] = embedded.shape[1] + within - taken.start
        visual, placed = self.visual(number).tokens, self.backend.put(order)
        feeds = {"text": hidden, "visual": visual, "order": placed}
        with self.recorder.span("assemble", "prefill", len(order)):
            hidden = self.decoder.graphs.runner(self.decoder.manifest.assemble)(feeds)["hidden"]
        self.recorder.show("assemble", hidden)
        return hidden

    def visual(self, number: int) -> Visual:
        """A picture's tokens as they enter the decoder, ``[1, V, C]``."""
        if number not in self._visual:
            image = self.prompt.images[number]
            visual, cut = image.load(), image.part.projected
            if cut is not None:
                visual = self._project(cut, visual)
            self._visual[number] = visual
        return self._visual[number]

    def _project(self, cut: Reduction, visual: Visual) -> Visual:
        feeds = {"visual": visual.tokens}
        if "text" in cut.inputs:
            feeds["text"] = self.text
        runner = self.decoder.graphs.runner(cut.graph)
        with self.recorder.span(cut.site, "prefill", cut.tokens_in):
            out = runner(feeds)
        self.recorder.show(cut.site, out["visual_out"])
        self.recorder.show_reduction(cut.site, Reduced(runner, feeds, out))
        places = self.backend.fetch(out["places"])
        sizes = visual.sizes
        if sizes is not None:
            sizes = np.take_along_axis(sizes, places, axis=1)
        return replace(
            visual, tokens=out["visual_out"], origins=visual.origins.keep(places), sizes=sizes
        )

    @property
    def text(self) -> Value:
        """``[1, T, C]``, the whole prompt's text."""
        if self._text is None:
            embedded = self.decoder.graphs.embeddings.rows(self._ids.tolist())
            self._text = self.backend.put(embedded[None])
        return self._text
