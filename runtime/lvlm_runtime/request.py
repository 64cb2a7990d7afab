"""A checked request: everything that can be wrong with it is reported before a graph runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.manifest import Budget, LayoutBudget, Manifest
from lvlm_runtime.bundle.route import route, visual_tokens
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import preprocess
from lvlm_runtime.image.anyres import MULTI, TileLayout
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.prompt.sequence import text_runs


@dataclass(frozen=True)
class CheckedRequest:
    """Everything that generation needs.

    Attributes:
        runs: Text token ids around the images, n+1 runs.
        pixel_values: ``[tiles, 3, H, W]``; None without images.
        budget: Of the ratio.
        part: That budget's part for the tile layout; None without images.
        images: Pictures.
        letterboxed: Those that were padded to the tile layout, by index.
    """

    runs: list[list[int]]
    pixel_values: NDArray[np.float32] | None
    budget: Budget
    part: LayoutBudget | None
    images: int
    letterboxed: tuple[int, ...]

    @property
    def prompt_tokens(self) -> int:
        """Positions of the prompt before reduction in the decoder."""
        visual = 0 if self.part is None else self.images * self.part.tokens_in
        return sum(map(len, self.runs)) + visual

    def ids(self, image_token_id: int) -> list[int]:
        """The prompt as ``generate`` of transformers sees it: all image tokens of ratio 1.0.

        Rules on what was said count and compare them.
        """
        per_image = 0 if self.part is None else self.part.tokens_full
        ids = list(self.runs[0])
        for run in self.runs[1:]:
            ids += [image_token_id] * per_image + run
        return ids

    def visual_tokens(self, manifest: Manifest) -> tuple[tuple[str, int], ...]:
        """Visual tokens at each stage, all images together; empty without images."""
        if self.part is None or self.pixel_values is None:
            return ()
        count = {"tile": len(self.pixel_values), "image": self.images}
        steps = route(manifest, self.budget, self.part)
        return tuple((name, count[per] * tokens) for name, per, tokens in visual_tokens(steps))


def layouts_for(layouts: Sequence[TileLayout], images: int) -> tuple[TileLayout, ...]:
    """Those of a bundle's tile layouts that so many images may have, of one kind; empty without images."""
    if images == 0:
        return ()
    several = tuple(layout for layout in layouts if layout.kind == MULTI)
    if images > 1 and several:
        return several
    return tuple(layout for layout in layouts if layout.kind != MULTI)


def layout_for(manifest: Manifest, images: Sequence[Picture]) -> TileLayout | None:
    """The tile layout of a request with these images, among those that the bundle has.

    Raises:
        LvlmError: An image cannot be read, where the bundle has layouts of several sizes.
    """
    layouts = layouts_for(manifest.layouts, len(images))
    return preprocess.choose_layout(images, manifest.preprocess, layouts) if layouts else None


def check_request(
    bundle: Bundle,
    token_ids: Sequence[int],
    images: Sequence[Picture],
    ratio: float | None,
    max_new_tokens: int,
    recorder: Recorder,
) -> CheckedRequest:
    """Read the pictures and count everything.

    Args:
        bundle: The bundle that is to answer.
        token_ids: The prompt, one placeholder id per image.
        images: As many pictures.
        ratio: One of the bundle's; None for its first.
        max_new_tokens: Longest answer.
        recorder: Takes the time of preprocessing.

    Raises:
        UsageError: The bundle has no such ratio.
        LvlmError: A picture cannot be read, or the prompt does not fit.
    """
    manifest = bundle.manifest
    budget = bundle.budget(ratio)
    runs = text_runs(token_ids, manifest.text.image_token_id)
    if len(runs) - 1 != len(images):
        raise LvlmError(
            f"the prompt has {len(runs) - 1} image placeholders and {len(images)} images were"
            " given; give one image for each placeholder (--image)"
        )
    check_tokens(runs, manifest.text.vocab_size)
    layout = layout_for(manifest, images)
    part = None if layout is None else budget.layout(layout.name)
    _check_length(manifest, runs, part, max_new_tokens)
    pixel_values = None
    letterboxed: tuple[int, ...] = ()
    if layout is not None:
        with recorder.span("preprocess", "preprocess", 0):
            prepared = preprocess.preprocess(images, manifest.preprocess, layout)
        pixel_values = prepared.pixel_values
        letterboxed = tuple(i for i, fit in enumerate(prepared.fits) if fit.letterboxed)
    return CheckedRequest(runs, pixel_values, budget, part, len(images), letterboxed)


def check_tokens(runs: list[list[int]], rows: int) -> None:
    """Every id has a row in the token table; a tokenizer can have more tokens than the model."""
    for run in runs:
        for token in run:
            if not 0 <= token < rows:
                raise LvlmError(
                    f"token {token} of the prompt is not one of the model's {rows}; leave the word"
                    " that it stands for out of the question"
                )


def _check_length(
    manifest: Manifest, runs: list[list[int]], part: LayoutBudget | None, max_new_tokens: int
) -> None:
    text = sum(map(len, runs))
    # Positions count, and kept tokens keep theirs: a reduced image takes the unreduced span.
    visual = 0 if part is None else (len(runs) - 1) * part.span
    limit = manifest.text.context_length
    if text + visual + max_new_tokens > limit:
        raise LvlmError(
            f"the prompt does not fit: {text} text and {visual} visual tokens and an answer of"
            f" {max_new_tokens} exceed the context of {limit}; shorten the prompt, give fewer"
            " images, a smaller --ratio or a smaller --max-new-tokens"
        )
    if text == 0:
        raise LvlmError("the prompt is empty; ask a question")
