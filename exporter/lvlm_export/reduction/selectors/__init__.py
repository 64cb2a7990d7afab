"""What a method does to one site's tokens: the protocol, and the selectors that several share.

A selector that only one method uses is a module here under the method's name; the method's own file
in ``methods`` stays free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lvlm_export.reduction.tensors import cosine, gather_rows, sort_ascending

Attention = Literal["received", "salience", "fused", "last_row"]
Clue = Literal[
    "keys",
    "mean_keys",
    "cls",
    "text",
    "text_keys",
    "text_attention",
    "text_after",
    "decoder_input",
    "sizes",
    "origins",
]


@dataclass(frozen=True)
class Clues:
    """What a selector gets beside the tokens of its site; a field that it does not need is None.

    Attributes:
        scores: ``[B, N]`` float32, of the kind that ``Selector.attention`` names.
        keys: ``[B, N, H*D]``, keys of the layer that scores the tokens.
        mean_keys: ``[B, N, D]`` float32, the same averaged over heads.
        cls: ``[B, C]``, the CLS token.
        sizes: ``[B, N]``, how many patches each token stands for.
        origins: ``[B, N]`` int64, where in the tile's patches each token stood.
        text: ``[T, C]``, the prompt's text rows at the site.
        text_keys: ``[T, H*D]``, their keys.
        text_attention: ``[n, T, V]`` float32, mean over heads of the text rows' attention.
        text_embeds: ``[T, C]``, the text as it entered the decoder; with ``decoder_input``.
        visual_embeds: ``[n, V0, C]``, the images' tokens as they entered it.
        text_after: ``[n, T]`` bool, the text rows that stand after an image; with ``decoder_input``
            too.
    """

    scores: Tensor | None = None
    keys: Tensor | None = None
    mean_keys: Tensor | None = None
    cls: Tensor | None = None
    sizes: Tensor | None = None
    origins: Tensor | None = None
    text: Tensor | None = None
    text_keys: Tensor | None = None
    text_attention: Tensor | None = None
    text_embeds: Tensor | None = None
    visual_embeds: Tensor | None = None
    text_after: Tensor | None = None


class Selector(nn.Module):
    """Called with ``tokens [B, N, C]`` and their clues.

    Returns ``[B, K, C]`` in raster order and the places ``[B, K]`` int64 they came from; -1 stands
    for a token that is no single patch. One that needs ``sizes`` returns theirs, ``[B, K]``, too.

    Attributes:
        attention: The scores it needs. ``received``: attention that a token receives, mean over
            heads and query rows; ``salience``: the CLS token's row, mean over heads, or
            ``received`` where there is no CLS token; ``fused``: as ``salience`` with all heads
            taken as one; ``last_row``: the last text token's row; None for none.
        needs: The other clues it needs.
        gives_origins: It returns where its tokens stood, ``[B, K]``, behind their sizes.
    """

    attention: Attention | None = None
    needs: frozenset[Clue] = frozenset()
    gives_origins: bool = False


class ScoredSelector(Selector):
    """A selector whose scores are attention of a kind that is given.

    Args:
        keep: K, the tokens that stay.
        attention: What ranks them.
    """

    def __init__(self, keep: int, attention: Attention) -> None:
        super().__init__()
        self.keep = keep
        self.attention = attention


class KeepBest(ScoredSelector):
    """Keep the K tokens of the highest score as they are."""

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        assert clues.scores is not None
        kept = sort_ascending(clues.scores.topk(self.keep, dim=-1, sorted=True).indices)
        return gather_rows(tokens, kept), kept


class KeepMostLikeCls(Selector):
    """Keep the K tokens most cosine-similar to the CLS token as they are."""

    needs: frozenset[Clue] = frozenset({"cls"})

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        assert clues.cls is not None
        like = cosine(clues.cls.unsqueeze(1), tokens)[:, 0]
        kept = sort_ascending(like.topk(self.keep, dim=-1, sorted=True).indices)
        return gather_rows(tokens, kept), kept


class KeepPlaces(Selector):
    """Keep constant places, the same in every image."""

    places: Tensor

    def __init__(self, places: list[int]) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        places = self.places.unsqueeze(0).expand(tokens.shape[0], -1)
        return tokens.index_select(1, self.places), places


class DropAll(Selector):
    """Keep nothing; the reducer then has only the text to put in order."""
