"""What a method's own search finds on sample questions, before a build.

VTW looks for the first layer at which its visual tokens may leave, PruMerge for the share of
patches that are outliers of its scores. The authors search for every model or every picture; a
bundle has fixed counts, so the search runs once, here, and gives a ratio to build with.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from lvlm_export.check.chain_run import ParitySample
from lvlm_export.check.layers import spread
from lvlm_export.check.parity import request_of
from lvlm_export.check.reference import Reference
from lvlm_export.check.reference_io import ReferenceRequest, Trace
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_export.reduction.method import Site
from lvlm_export.reduction.methods.prumerge import adaptive_ratio
from lvlm_export.reduction.methods.vtw import kl_divergence


@dataclass(frozen=True)
class Withdrawal:
    """What leaving at one decoder layer does to the answer's first token.

    Attributes:
        layer: The first layer without visual tokens.
        ratio: What to build with, ``layer / layers``.
        divergence: Mean KL(withdrawn || full) over the samples, in nats.
    """

    layer: int
    ratio: float
    divergence: float


def measure_withdrawals(
    checkpoint: Checkpoint,
    samples: Sequence[ParitySample],
    image_size: tuple[int, int] | None,
    advance: Callable[[str], None],
) -> list[Withdrawal]:
    """Leaving at every layer of a model, in order; ``advance`` is called once per sample."""
    reference = _reference(checkpoint, "vtw", image_size)
    depth = len(reference.parts.text_layers)
    by_layer: dict[int, list[float]] = {layer: [] for layer in range(1, depth)}
    for request in _requests(checkpoint, reference, samples, advance):
        full, withdrawn = withdrawn_logits(reference, request)
        for layer, logits in withdrawn.items():
            by_layer[layer].append(kl_divergence(full.tolist(), logits.tolist()))
    return [
        Withdrawal(layer, layer / depth, statistics.fmean(each)) for layer, each in by_layer.items()
    ]


@torch.no_grad()
def withdrawn_logits(
    reference: Reference, request: ReferenceRequest
) -> tuple[Tensor, dict[int, Tensor]]:
    """Last logits ``[vocabulary]``: unreduced, and by the layer at which visual tokens leave.

    The layers before it are computed once for all; those after it run on the text alone.
    """
    parts = reference.parts
    budget = next(budget for budget in reference.plan.budgets if budget.ratio == 1.0)
    entry = reference.enter(request, budget, Trace())
    hidden, text = entry.hidden, torch.from_numpy(entry.placed.text)
    depth, cache = len(parts.text_layers), DynamicCache()
    withdrawn = {}

    def added(layer: int) -> dict[int, Tensor]:
        """What a layer adds to the visual tokens behind it."""
        if layer >= len(entry.planes):
            return {}
        return {layer: spread(entry.planes[layer], entry.placed)}

    for layer in range(depth):
        if layer:
            alone, places = hidden[:, text], entry.positions[:, text]
            last = reference.layers(alone, places, DynamicCache(), range(layer, depth), None)
            withdrawn[layer] = parts.lm_head(parts.norm(last[:, -1]))[0]
        one = range(layer, layer + 1)
        hidden = reference.layers(hidden, entry.positions, cache, one, None, None, added(layer))
    return parts.lm_head(parts.norm(hidden[:, -1]))[0], withdrawn


def measure_outlier_shares(
    checkpoint: Checkpoint,
    samples: Sequence[ParitySample],
    image_size: tuple[int, int] | None,
    advance: Callable[[str], None],
) -> list[float]:
    """Share of its tokens that PruMerge's adaptive rule keeps of each tile of each picture."""
    reference = _reference(checkpoint, "prumerge", image_size)
    budget = reference.plan.budgets[0]
    site = Site("features", len(reference.parts.vision_layers)).name
    shares = []
    for request in _requests(checkpoint, reference, samples, advance):
        trace = Trace()
        with torch.no_grad():
            pixels = torch.from_numpy(request.pixel_values)
            reference.encode(pixels, budget, request.layout, trace, None)
        shares += [adaptive_ratio([row]) for row in trace.scores[site].tolist()]
    return shares


def _reference(
    checkpoint: Checkpoint, method: str, image_size: tuple[int, int] | None
) -> Reference:
    """The model with a method's sites, which are the same at every ratio for these methods."""
    options = BuildOptions(ratios=(0.5,), method=method, image_size=image_size)
    return Reference(checkpoint.directory, checkpoint.family, make_plan(checkpoint, options))


def _requests(
    checkpoint: Checkpoint,
    reference: Reference,
    samples: Sequence[ParitySample],
    advance: Callable[[str], None],
) -> Iterator[ReferenceRequest]:
    """Every sample as the model takes it; ``advance`` is called when the caller is done with it."""
    shape = reference.plan.shape
    encoder = checkpoint.encoder
    for number, sample in enumerate(samples):
        yield request_of(sample, encoder, shape.layouts, shape.preprocess, shape.image_token_id)
        advance(f"sample {number}")
