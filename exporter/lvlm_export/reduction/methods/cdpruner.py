"""CDPruner: a determinantal point process over relevance and diversity, greedily.

Source: arXiv:2506.10967 and the authors' code (@9541616c, llava_arch.py:140-187), relevance as in
OpenVINO GenAI's port (@da1db864, src/cpp/src/visual_language/cdpruner); shared METHODS §14. On
the tokens as they would enter the decoder: relevance is the mean cosine with the prompt's text
embeddings, scaled to [0, 1] per image; the kernel is rel_i cos(f_i, f_j) rel_j; K greedy steps of
its Cholesky factor choose the tokens. Raster order, original positions.

Differences: relevance is not negated (the authors' minus sign is for CLIP's text tower) and is
scaled per image (theirs over the batch), the kernel has a ridge of 1e-4, so that the order is
defined when K comes near the rank of the tokens (a budget past it is refused), and of equal tokens,
as the newlines of packed tiles are, all but the first come last. A larger ridge would leave less to
rounding and change the choice: 1e-3 replaces 2 to 15 % of the tokens kept on the demo model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector


class CDPruner(Method):
    """CDPruner between projector and decoder."""

    name = "cdpruner"
    summary = "keep relevant and different tokens (greedy DPP with the question's text)"
    paper = "arXiv:2506.10967"
    cost = "all pairs once, then K Cholesky steps over V (K x 10 small nodes)"
    acts_in = "before the decoder"
    needs_rank = True

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("projected", 0),)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors.greedy import GreedyDpp

        return GreedyDpp(shape.tokens_out)


METHOD = CDPruner()
