"""Where text and visual tokens stand in the decoder's sequence. Pure integers on the host.

A prompt is runs of text with images between them: run 0, image 0, run 1, …, image n-1, run n.
Reducers shorten every image by the same count, so each new order is known before a graph runs
and no graph has to sort a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Placed:
    """A sequence after images were put into it.

    Attributes:
        order: ``[S]`` source row of every position: rows of the old sequence, then images' rows.
        text: ``[T]`` positions of the text tokens.
        visual: ``[n, V]`` positions of each image's tokens.
    """

    order: Indices
    text: Indices
    visual: Indices


@dataclass(frozen=True)
class Origins:
    """Where the tokens of the images stood before any reduction.

    A kept token keeps its place on the vision tower's grid as its RoPE position, and text after an
    image continues as if nothing had been taken out (wrong ids cost up to 40 points on grounding,
    arXiv:2506.21873). Where a packer lays the tokens out anew, the packed order is the origin.

    Attributes:
        offsets: ``[n, V]`` position of each token, counted from its image's first.
        span: Positions that an image takes in the prompt.
    """

    offsets: Indices
    span: int

    @classmethod
    def whole(cls, images: int, tokens: int) -> Origins:
        """Images of which nothing was taken out."""
        return cls(np.tile(np.arange(tokens, dtype=np.int64), (images, 1)), tokens)

    def keep(self, places: Indices) -> Origins:
        """After a reduction that kept ``places [n, K]``.

        A place of -1 is a token that is no single patch (a CLS token in front, a sum of what was
        pruned at the end); it takes the image's first or last position, where it stands.
        """
        kept = np.take_along_axis(self.offsets, np.where(places < 0, 0, places), axis=1)
        ends = np.where(np.arange(places.shape[1]) == 0, 0, self.span - 1)
        return Origins(np.where(places < 0, ends, kept), self.span)

    def joined(self, tiles: int) -> Origins:
        """Of images whose ``tiles`` follow one another, each of which had its origins alone.

        Example:
            >>> Origins.whole(2, 9).keep(np.array([[0, 4], [1, 8]])).joined(2).offsets.tolist()
            [[0, 4, 10, 17]]
        """
        starts = np.arange(len(self.offsets), dtype=np.int64)[:, None] % tiles * self.span
        images, span = len(self.offsets) // tiles, tiles * self.span
        return Origins((self.offsets + starts).reshape(images, -1), span)


def position_ids(run_lengths: Sequence[int], origins: Origins | None) -> tuple[Indices, int]:
    """RoPE positions ``[S]`` of a prompt, and the position of the first token after it."""
    ids, following = position_rows(run_lengths, origins, 1, None)
    return ids[0], following


def position_rows(
    run_lengths: Sequence[int], origins: Origins | None, rows: int, grid: tuple[int, int] | None
) -> tuple[Indices, int]:
    """RoPE positions ``[R, S]`` of a prompt, and the position of the first token after it.

    With three rows (time, height and width) a token of an image stands at one time, in its row and
    column of ``grid``, and text continues behind the longer edge; every row of text is the same.
    Source: arXiv:2409.12191 section 2.1; transformers 5.23, ``get_rope_index`` of ``qwen2_vl``.

    Args:
        run_lengths: Of the n+1 runs of text.
        origins: Where the images' tokens stood in raster order; None without images.
        rows: R, 1 or 3.
        grid: Rows and columns of an image's tokens; with three rows.
    """
    pieces: list[Indices] = []
    start = 0
    for image, length in enumerate(run_lengths):
        pieces.append(text_positions(start, length, rows))
        start += length
        if origins is not None and image < len(run_lengths) - 1:
            pieces.append(start + image_positions(origins.offsets[image], rows, grid))
            start += image_span(origins.span, rows, grid)
    return np.concatenate(pieces, axis=1), start


def text_positions(start: int, count: int, rows: int) -> Indices:
    """RoPE positions ``[R, count]`` of text from position ``start`` on; every row is the same."""
    return np.tile(np.arange(start, start + count, dtype=np.int64), (rows, 1))


def image_positions(offsets: Indices, rows: int, grid: tuple[int, int] | None) -> Indices:
    """RoPE positions ``[R, V]`` of an image's tokens, counted from where the image begins.

    Args:
        offsets: ``[V]``, where they stood in raster order.
        rows: As of ``position_rows``.
        grid: Likewise.

    Example:
        >>> image_positions(np.array([0, 4, 5]), 3, (2, 3)).tolist()
        [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
    """
    if rows == 1:
        return offsets[None]
    assert grid is not None
    return np.stack((0 * offsets, offsets // grid[1], offsets % grid[1]))


def image_span(span: int, rows: int, grid: tuple[int, int] | None) -> int:
    """RoPE positions that an image of ``span`` tokens takes: with three rows its longer edge."""
    if rows == 1:
        return span
    assert grid is not None
    return max(grid)


def text_runs(token_ids: Sequence[int], image_token_id: int) -> list[list[int]]:
    """Split a prompt at its image placeholders (one id per image) into n+1 text runs."""
    runs: list[list[int]] = [[]]
    for token in token_ids:
        if token == image_token_id:
            runs.append([])
        else:
            runs[-1].append(token)
    return runs


def place_tokens(
    run_lengths: Sequence[int], text_rows: Indices, images_start: int, per_image: int
) -> Placed:
    """Interleave text runs with images of ``per_image`` rows.

    Args:
        run_lengths: Lengths of the n+1 text runs.
        text_rows: ``[T]`` source row of every text token.
        images_start: Source row of the first image's first token; images follow one another.
        per_image: Rows per image.
    """
    order: list[Indices] = []
    visual: list[Indices] = []
    taken, position = 0, 0
    for image, length in enumerate(run_lengths):
        order.append(text_rows[taken : taken + length])
        taken, position = taken + length, position + length
        if image == len(run_lengths) - 1:
            break
        start = images_start + image * per_image
        order.append(np.arange(start, start + per_image, dtype=np.int64))
        visual.append(np.arange(position, position + per_image, dtype=np.int64))
        position += per_image
    joined = np.concatenate(order)
    places = np.stack(visual) if visual else np.zeros((0, per_image), np.int64)
    text = np.setdiff1d(np.arange(position, dtype=np.int64), places.reshape(-1))
    return Placed(joined, text, places)


@dataclass(frozen=True)
class Spans:
    """Where text and images stand in a sequence.

    Attributes:
        text: ``[T]`` rows of the text tokens.
        images: Rows of each image.
        total: Rows of the sequence.
    """

    text: Indices
    images: tuple[range, ...]
    total: int


def place_rows(run_lengths: Sequence[int], per_image: Sequence[int]) -> Spans:
    """Text runs and images of ``per_image`` rows each, one behind the other.

    Example:
        >>> place_rows([2, 1], [3]).text.tolist(), place_rows([2, 1], [3]).images
        ([0, 1, 5], (range(2, 5),))
    """
    text: list[Indices] = []
    images: list[range] = []
    row = 0
    for image, length in enumerate(run_lengths):
        text.append(np.arange(row, row + length, dtype=np.int64))
        row += length
        if image < len(per_image):
            images.append(range(row, row + per_image[image]))
            row += per_image[image]
    return Spans(np.concatenate(text), tuple(images), row)
