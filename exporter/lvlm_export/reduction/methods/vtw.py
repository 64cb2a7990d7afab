"""VTW (visual tokens withdrawal): all visual tokens leave at one decoder layer.

Source: arXiv:2405.05803 and the authors' code (lzhxmu/VTW @a3d8cfc3); shared METHODS §6. There is
no K to choose, so the ratio decides the layer: they leave before ``round(ratio * layers)``, so that
the mean number of visual tokens over the decoder's layers is the ratio's share. The published
layers, 16 of 32 and 20 of 40, are ``--ratio 0.5``. Positions are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_runtime.errors import LvlmError, UsageError

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector


def withdrawal_layer(text_layers: int, ratio: float) -> int:
    """The layer at whose input visual tokens leave.

    Raises:
        UsageError: It would be before the first layer or after the last; names the nearest ratio.
    """
    layer = round(ratio * text_layers)
    if text_layers < 2:
        raise UsageError("method vtw needs two decoder layers; the nearest ratio it can is 1.0")
    if not 1 <= layer < text_layers:
        nearest = (1 if layer < 1 else text_layers - 1) / text_layers
        raise UsageError(
            f"method vtw withdraws at a layer between 1 and {text_layers - 1} of {text_layers} and"
            f" ratio {ratio:g} is layer {layer}; the nearest ratio it can is {nearest:.4g}"
        )
    return layer


def kl_divergence(full: Sequence[float], withdrawn: Sequence[float]) -> float:
    """KL(withdrawn || full) of two rows of logits, in nats."""
    first, second = _log_softmax(full), _log_softmax(withdrawn)
    return sum(math.exp(q) * (q - p) for p, q in zip(first, second, strict=True))


def _log_softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    total = top + math.log(sum(math.exp(value - top) for value in logits))
    return [value - total for value in logits]


def choose_layer(divergences: Mapping[int, float], limit: float) -> int:
    """The first layer at which withdrawing changes the answer's first token little enough.

    Source: VTW.py:238-262: the mean over about 20 samples of KL(withdrawn || full) of the last
    logits; published limits 0.003 (LLaVA-1.5-7B), 0.0005 (13B), 0.0001 (1.6-7B).
    ``lvlm-export choose`` measures them.

    Args:
        divergences: The mean, of every layer that was tried.
        limit: Largest one that passes.

    Raises:
        LvlmError: No layer passes; names the best.
    """
    for layer in sorted(divergences):
        if divergences[layer] <= limit:
            return layer
    best = min(divergences, key=lambda layer: divergences[layer])
    raise LvlmError(
        f"no layer reaches a divergence of {limit:g}; the best is layer {best} with"
        f" {divergences[best]:.2g}"
    )


class VisualTokensWithdrawal(Method):
    """Withdraw all visual tokens at the layer that the ratio gives."""

    name = "vtw"
    summary = "drop all visual tokens at one decoder layer; the ratio says which"
    paper = "arXiv:2405.05803"
    cost = "a gather of the text"
    acts_in = "1 decoder layer"
    withdraws = True

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("decoder", withdrawal_layer(text_layers, ratio)),)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors import DropAll

        return DropAll()


METHOD = VisualTokensWithdrawal()
