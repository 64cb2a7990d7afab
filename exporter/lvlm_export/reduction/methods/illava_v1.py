"""iLLaVA of January 2025: average the least attended tokens into one, in tower and decoder.

Source: arXiv:2412.06263 and the authors' code of then (hulianyuyy/iLLaVA @4068149e); shared METHODS
§2.1 to 2.5. Both stages rank tokens by the attention they receive, average the r+1 lowest with linear
weights (the least attended weighs most) into the best of them, and delete the other r. Until 0.1 this
method's name here was ``illava``; ``illava`` is now the form that its authors publish now.

Published for LLaVA-OneVision-7B: 92 tokens leave at each of vision layers 5-6-7-8 and 0.70 of the rest
stay at decoder layer 8, which is 729 → 637 → 545 → 453 → 361 → 253 and ``--ratio 0.347`` here: of the
total log-ratio 0.664 belongs to the vision encoder. Another ratio keeps that split, in equal removals
inside the vision encoder, and another depth has the sites at the same fractions of it; fractions that
round to one layer become one site.

What the authors' files disagree on: ``illava_llm_r`` is a share that is KEPT, which their README calls
tokens to be merged; their README says that 364 tokens leave the tower where the code removes 368; and
on Qwen2-VL they take FlashAttention's ``softmax_lse`` for the attention, which is not done here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_export.reduction.methods.illava import VISION_LAYERS, decoder_sites, vision_sites

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

DECODER_LAYER = 8


class IllavaOfJanuary2025(Method):
    """iLLaVA's first release at a fixed ratio; 729 -> 361 -> 253 at its published point."""

    name = "illava_v1"
    summary = (
        "iLLaVA of January 2025: average the least attended tokens into one, in tower and decoder"
    )
    paper = "arXiv:2412.06263 (code of January 2025)"
    cost = "a softmax over all pairs per vision site, one attention row in the decoder"
    acts_in = "4 vision layers, 1 decoder layer"
    merges = True
    # ln(361/729) / ln(253/729): the vision encoder's part of the published reduction.
    vision_share = 0.664

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (
            *vision_sites(VISION_LAYERS, vision_layers),
            *decoder_sites((DECODER_LAYER,), text_layers),
        )

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors.illava import AverageLeastAttended

        return AverageLeastAttended(
            shape.tokens_out, "received" if site.stage == "vision" else "last_row"
        )


METHOD = IllavaOfJanuary2025()
