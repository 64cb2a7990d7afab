"""Reducers: a selector at a site, with constant K and no weight of its own.

Each computes the clues that its selector needs and nothing else, and returns beside the tokens the
places they came from (``places``), for pictures of what was kept.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lvlm_export.reduction.method import ReducerShape
from lvlm_export.reduction.selectors import Clues, Selector
from lvlm_export.reduction.tensors import (
    fuse_heads,
    gather_rows,
    join_groups,
    last_row_attention,
    received_attention,
    salience,
    text_rows_attention,
    window_bias,
)

TEXT_CLUES = frozenset({"text", "text_keys", "text_attention", "text_after", "decoder_input"})


class PixelReducer(nn.Module):
    """A selector on the tiles themselves.

    Inputs: ``pixel_values [B, 3, H, H]``. Outputs: ``pixel_values_out [B, 3, h, h]``, and
    ``places [B, K]`` of the patches that it has.
    """

    inputs = ("pixel_values",)
    outputs = ("pixel_values_out", "places")

    def __init__(self, shape: ReducerShape, selector: Selector) -> None:
        super().__init__()
        self.shape = shape
        self.selector = selector

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        smaller: tuple[Tensor, Tensor] = self.selector(pixel_values, Clues())
        return smaller


class VisionReducer(nn.Module):
    """A selector in the vision encoder; prefix tokens (CLS) are not scored or touched.

    Inputs: ``hidden [B, P+N, C]``, ``query``, ``key`` ``[B, H, P+N, D]`` of the layer and, where
    the selector needs them, ``sizes [B, P+N]``, how many patches each token stands for, and
    ``origins [B, N]``, where in the tile's patches each stood. Outputs: ``hidden_out [B, P+K, C]``,
    ``places [B, K]``, ``sizes_out [B, P+K]`` and ``origins_out [B, K]``.

    Where a merger joins groups of G patches, a token is a group: ``hidden [B, P+N, G*C]``, with zeros
    behind a prefix row, beside ``query`` and ``key [B, H, P+N*G, D]``. Its score is the mean of its patches', its keys stand side
    by side, and what is merged is merged patch by patch. The rows that belong to the tokens,
    ``grid [B, N, 2]``, come out as those of the tokens that stay, ``grid_out [B, K, 2]``; a merged
    token has that of the one it is merged into.
    """

    # The inputs that every method has; the others are passed by their names.
    positional = 3

    def __init__(self, shape: ReducerShape, selector: Selector) -> None:
        super().__init__()
        self.shape = shape
        self.selector = selector
        sized = "sizes" in selector.needs
        located = "origins" in selector.needs
        travels = ["sizes"] * sized + ["origins"] * located
        self.inputs = ("hidden", "query", "key", *travels, *shape.rows)
        gives = ["sizes_out"] * sized + ["origins_out"] * selector.gives_origins
        self.outputs = ("hidden_out", "places", *gives, *(f"{name}_out" for name in shape.rows))

    def patches(self, rows: Tensor) -> Tensor:
        """Rows ``[B, P+N, …]`` without the prefix."""
        return rows.narrow(1, self.shape.prefix, self.shape.tokens_in)

    def reduce(self, hidden: Tensor, clues: Clues) -> tuple[Tensor, ...]:
        """As ``forward`` with the clues given instead of query and key."""
        kept, places, *others = self.selector(self.patches(hidden), clues)
        prefix = self.shape.prefix
        if prefix:
            kept = torch.cat((hidden.narrow(1, 0, prefix), kept), dim=1)
            # A CLS token stands for itself.
            sizes = [nn.functional.pad(each, (prefix, 0), value=1.0) for each in others[:1]]
            others = [*sizes, *others[1:]]
        return kept, places, *others

    def scores(self, query: Tensor, key: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """``[B, P+N]`` of the kind that the selector needs."""
        kind, shape = self.selector.attention, self.shape
        scores = None
        if kind == "received":
            scores = received_attention(query, key, shape.scale, bias)
        elif kind == "salience":
            scores = salience(query, key, shape.scale, shape.prefix, bias)
        elif kind == "fused":
            whole = fuse_heads(query).unsqueeze(1), fuse_heads(key).unsqueeze(1)
            scores = salience(*whole, whole[0].shape[-1] ** -0.5, shape.prefix, bias)
        else:
            assert kind is None, f"{kind} is no attention of a vision site"
        return scores if scores is None else self.group_scores(scores)

    def group_scores(self, scores: Tensor) -> Tensor:
        """Of prefix and patches ``[B, P+N*G]``: of prefix and tokens ``[B, P+N]``."""
        prefix, group = self.shape.prefix, self.shape.group
        if group == 1:
            return scores
        means = scores[:, prefix:].reshape(scores.shape[0], -1, group).mean(dim=-1)
        return torch.cat((scores[:, :prefix], means), dim=1) if prefix else means

    def group_rows(self, rows: Tensor) -> Tensor:
        """Rows of prefix and patches ``[B, P+N*G, C]`` as those of tokens ``[B, P+N, G*C]``."""
        group = self.shape.group
        return rows if group == 1 else join_groups(rows, group, self.shape.prefix)

    def cls(self, hidden: Tensor) -> Tensor:
        """The CLS token ``[B, C]``, or for every patch of a group once, ``[B, G*C]``."""
        row, group = hidden[:, 0], self.shape.group
        return row if group == 1 else row[:, : row.shape[-1] // group].repeat(1, group)

    def keep_rows(self, grid: Tensor | None, places: Tensor) -> tuple[Tensor, ...]:
        """The tokens' rows, those of the tokens that stay."""
        return () if grid is None else (gather_rows(grid, places),)

    def forward(
        self,
        hidden: Tensor,
        query: Tensor,
        key: Tensor,
        sizes: Tensor | None = None,
        origins: Tensor | None = None,
        grid: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        needs, shape, bias = self.selector.needs, self.shape, None
        if grid is not None and shape.window:
            bias = window_bias(grid, shape.window, shape.group, torch.float32)
        scores = self.scores(query, key, bias)
        mean_keys = None
        if "mean_keys" in needs:
            mean_keys = self.patches(self.group_rows(key.float().mean(dim=1)))
        clues = Clues(
            scores=None if scores is None else self.patches(scores),
            keys=self.patches(self.group_rows(fuse_heads(key))) if "keys" in needs else None,
            mean_keys=mean_keys,
            cls=self.cls(hidden) if "cls" in needs else None,
            sizes=None if sizes is None else self.patches(sizes),
            origins=origins,
        )
        kept, places, *others = self.reduce(hidden, clues)
        return (kept, places, *others, *self.keep_rows(grid, places))


class ProjectedReducer(nn.Module):
    """A selector on the tokens of each image as they would enter the decoder.

    Inputs: ``visual [n, V, C]`` and, where the selector needs it, ``text [1, T, C]``, the
    embeddings of the prompt's text. Outputs: ``visual_out [n, K, C]``, ``places [n, K]``.
    """

    outputs = ("visual_out", "places")

    def __init__(self, shape: ReducerShape, selector: Selector) -> None:
        super().__init__()
        assert selector.attention is None, "before the decoder there is no attention"
        self.shape = shape
        self.selector = selector
        self.inputs = ("visual", "text") if "text" in selector.needs else ("visual",)

    def forward(self, visual: Tensor, text: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept: tuple[Tensor, Tensor] = self.selector(
            visual, Clues(text=None if text is None else text[0])
        )
        return kept


class DecoderReducer(nn.Module):
    """A selector at the input of a decoder layer; text is never touched, positions are kept.

    Several images reduce independently, each from V to K tokens. The host knows the position of
    every token, so the new order is an input and no sort over the sequence is needed.

    Inputs:
        hidden: ``[1, S, C]`` at the input of the site's layer.
        query: ``[1, H, S, D]`` after RoPE, of the layer before.
        key: ``[1, Hkv, C, D]``, that layer's cache, first S rows filled.
        position_ids: ``[R, S]`` int64, R positions of every token.
        visual_index: ``[n, V]`` int64, where each image's tokens stand in S.
        order: ``[S']`` int64 into the S old rows followed by the n*K reduced ones.
        text_index: ``[T]`` int64, where the text stands, if the selector needs text.
        text_embeds: ``[1, T, C]``, the text as it entered the decoder, if the selector needs it.
        visual_embeds: ``[n, V0, C]``, the images' tokens as they entered it, if it needs them.
        size_bias: ``[1, C]``, what attention adds for every row of the cache, where the decoder
            counts sizes and the selector asks for attention.

    Outputs:
        ``hidden_out [1, S', C]``, ``position_ids_out [R, S']`` and, where K > 0,
        ``places [n, K]``.
    """

    # The inputs that every method has; the others are passed by their names.
    positional = 6

    def __init__(self, shape: ReducerShape, selector: Selector, sized: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.selector = selector
        base = ("hidden", "query", "key", "position_ids", "visual_index", "order")
        attends = selector.attention is not None or "text_attention" in selector.needs
        sizes = ("size_bias",) if sized and attends else ()
        text = ("text_index",) if selector.needs & TEXT_CLUES else ()
        entered = ("text_embeds", "visual_embeds") if "decoder_input" in selector.needs else ()
        self.inputs: tuple[str, ...] = (*base, *sizes, *text, *entered)
        self.outputs = ("hidden_out", "position_ids_out", *(["places"] if shape.tokens_out else []))

    def reduce(
        self,
        hidden: Tensor,
        clues: Clues,
        position_ids: Tensor,
        visual_index: Tensor,
        order: Tensor,
    ) -> tuple[Tensor, ...]:
        """As ``forward`` with the clues given instead of query and key."""
        if self.shape.tokens_out == 0:
            return hidden.index_select(1, order), position_ids.index_select(1, order)
        reduced, places = self.selector(self.visual(hidden[0], visual_index), clues)
        origin = visual_index.gather(1, places).reshape(-1)
        rows = torch.cat((hidden[0], reduced.reshape(-1, hidden.shape[-1])), dim=0)
        positions = torch.cat((position_ids, position_ids.index_select(1, origin)), dim=1)
        return rows.index_select(0, order)[None], positions.index_select(1, order), places

    @property
    def needs_after(self) -> bool:
        """The selector asks which text stands after an image."""
        return bool(self.selector.needs & {"text_after", "decoder_input"})

    def visual(self, rows: Tensor, visual_index: Tensor) -> Tensor:
        """Rows ``[S, …]`` of each image's tokens: ``[n, V, …]``."""
        picked = rows.index_select(0, visual_index.reshape(-1))
        return picked.reshape(visual_index.shape[0], self.shape.tokens_in, *rows.shape[1:])

    def forward(
        self,
        hidden: Tensor,
        query: Tensor,
        key: Tensor,
        position_ids: Tensor,
        visual_index: Tensor,
        order: Tensor,
        text_index: Tensor | None = None,
        text_embeds: Tensor | None = None,
        visual_embeds: Tensor | None = None,
        size_bias: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        bias = None if size_bias is None else size_bias[0].narrow(0, 0, query.shape[2])
        clues = self.clues(hidden, query, key, visual_index, text_index, bias)
        if text_index is not None and self.needs_after:
            clues = replace(clues, text_after=text_after(visual_index, text_index))
        if text_embeds is not None:
            clues = replace(clues, text_embeds=text_embeds[0], visual_embeds=visual_embeds)
        return self.reduce(hidden, clues, position_ids, visual_index, order)

    def clues(
        self,
        hidden: Tensor,
        query: Tensor,
        key: Tensor,
        visual_index: Tensor,
        text_index: Tensor | None,
        bias: Tensor | None,
    ) -> Clues:
        """What the selector needs, from query and cache; ``bias [S]`` is added to scores."""
        selector, scale = self.selector, self.shape.scale
        scores = keys = text = text_keys = text_attention = None
        if selector.attention is not None:
            assert selector.attention == "last_row"
            scores = self.visual(last_row_attention(query, key, scale, bias), visual_index)
        if selector.needs & {"keys", "text_keys"}:
            filled = fuse_heads(key.narrow(2, 0, query.shape[2]))[0]
            keys = self.visual(filled, visual_index)
        if text_index is not None:
            text = hidden[0].index_select(0, text_index)
        if "text_keys" in selector.needs:
            assert text_index is not None
            text_keys = filled.index_select(0, text_index)
        if "text_attention" in selector.needs:
            assert text_index is not None
            rows = text_rows_attention(query, key, scale, text_index, bias, self.shape.causal)
            text_attention = self.visual(rows.transpose(0, 1), visual_index).transpose(1, 2)
        return Clues(
            scores=scores,
            keys=keys,
            text=text,
            text_keys=text_keys,
            text_attention=text_attention,
        )


def text_after(visual_index: Tensor, text_index: Tensor) -> Tensor:
    """``[n, T]`` bool, the text rows that stand after each image."""
    return text_index.unsqueeze(0) > visual_index[:, -1:]
