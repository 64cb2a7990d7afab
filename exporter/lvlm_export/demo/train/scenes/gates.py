"""Gates: does attention follow objects, and does keeping objects pay? Asked in training, kept in the log.

``attention_gate`` looks at patches alone, never at an answer: what attention received does at the
sites of iLLaVA, beside keeping patches at random. ``oracle_gate`` (``oracle.py``) asks questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm_export.demo.scenes import BACKGROUND, COLORS, SHAPES, UNCLEAR
from lvlm_export.demo.train.scenes.pools import SceneArrays
from lvlm_export.demo.train.scenes.reduced import Score, reduced_features, walk_tower
from lvlm_export.demo.train.scenes.tower import pixel_tensor

SITES: dict[str, dict[int, int]] = {
    # Layer, counted from 0, to how many patches are kept of 196 after its attention.
    "2025": {2: 162, 3: 128, 4: 94},
    "2026": {2: 167, 3: 142, 4: 120, 5: 102},
}
"""iLLaVA's sites at this tower's depth and ratio 0.33: of January 2025, and as it is now."""

LEAST_AUC = 0.6
PICTURES = 512
_BATCH = 64
_SIZES = ((6.0, 9.0), (9.0, 13.0), (13.0, 18.1))
_FILLED = ((0.25, 0.5), (0.5, 0.75), (0.75, 0.99), (0.99, 1.01))


@torch.no_grad()
def attention_gate(tower: Any, arrays: SceneArrays, pictures: int = PICTURES) -> dict[str, Any]:
    """Measure attention received against random.

    Args:
        tower: The vision tower.
        arrays: Pictures that training does not see.
        pictures: How many of them.

    Returns:
        ``auc``: per layer, how often an object's patch receives more attention than background.
        Per sites of SITES: shares of object patches that survive dropping those that receive least
        and dropping at random; of objects that lose every patch; the same by colour, shape, size in
        pixels of radius and how much of the patch is object. ``failed``: what does not hold, in
        words; empty where the gate is passed.
    """
    arrays = arrays.take(np.arange(pictures))
    owners = torch.from_numpy(arrays.owners).long()
    result: dict[str, Any] = {"pictures": pictures, "auc": _auc_per_layer(tower, arrays, owners)}
    failed = []
    for name, sites in SITES.items():
        facts = _survival(tower, arrays, owners, sites)
        result[f"sites_{name}"] = facts
        failed += [
            f"auc {result['auc'][layer]} at layer {layer} is not above {LEAST_AUC}"
            for layer in sites
            if result["auc"][layer] <= LEAST_AUC
        ]
        failed += [f"sites of {name}: {reason}" for reason in _failures(facts)]
    return {**result, "failed": list(dict.fromkeys(failed))}


def _failures(facts: Mapping[str, Any]) -> Iterator[str]:
    received, random = facts["received"], facts["random"]
    if received["survive"] <= random["survive"]:
        yield f"{received['survive']} of object patches survive, at random {random['survive']}"
    if received["lost"] > random["lost"]:
        yield f"{received['lost']} of objects are lost, at random {random['lost']}"
    for part in ("color", "filled"):
        for name, share in received[part].items():
            if share <= random["survive"]:
                yield f"{share} of patches of {part} {name} survive, at random {random['survive']}"


def _auc_per_layer(tower: Any, arrays: SceneArrays, owners: Tensor) -> list[float]:
    layers: list[list[float]] = [[] for _ in tower.encoder.layers]
    for rows in _batches(len(owners)):

        def watch(layer: int, hidden: Tensor, received: Tensor, rows: Tensor = rows) -> Tensor:
            for score, owner in zip(received, owners[rows], strict=True):
                clear = owner != UNCLEAR
                layers[layer].append(auc(score[clear], owner[clear] >= 0))
            return hidden

        walk_tower(tower, pixel_tensor(arrays.pixels[rows.numpy()]), watch)
    return [round(float(np.mean(values)), 3) for values in layers]


def _survival(
    tower: Any, arrays: SceneArrays, owners: Tensor, sites: Mapping[int, int]
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    scores: dict[str, Score] = {
        "received": lambda received, _places: received,
        "random": lambda received, _places: torch.rand(received.shape, generator=generator),
    }
    facts = {}
    for how, score in scores.items():
        alive = torch.zeros(owners.shape, dtype=torch.bool)
        for rows in _batches(len(owners)):
            pixels = pixel_tensor(arrays.pixels[rows.numpy()])
            _, places = reduced_features(tower, pixels, sites, score)
            alive[rows] = torch.zeros(len(rows), owners.shape[1]).bool().scatter(1, places, True)
        facts[how] = _survivors(alive, arrays, owners)
    return facts


def _batches(n: int) -> list[Tensor]:
    return [torch.arange(at, min(at + _BATCH, n)) for at in range(0, n, _BATCH)]


def _survivors(alive: Tensor, arrays: SceneArrays, owners: Tensor) -> dict[str, Any]:
    """What of object patches is alive, in all and by what it belongs to."""
    things, shares = torch.from_numpy(arrays.things), torch.from_numpy(arrays.shares)
    is_object = owners >= 0
    own = things.gather(1, owners.clamp(min=0)[..., None].expand(-1, -1, things.shape[-1]))

    def share(of: Tensor) -> float:
        return round(alive[is_object & of].float().mean().item(), 3)

    every = torch.ones_like(is_object)
    left = [
        bool(alive[row][owners[row] == number].any())
        for row, count in enumerate(arrays.counts.tolist())
        for number in range(count)
    ]
    return {
        "survive": share(every),
        "background": round(alive[owners == BACKGROUND].float().mean().item(), 3),
        "lost": round(1 - float(np.mean(left)), 4),
        "color": {name: share(own[..., 1] == number) for number, name in enumerate(COLORS)},
        "shape": {name: share(own[..., 0] == number) for number, name in enumerate(SHAPES)},
        "size": {
            f"{low:g}-{high:g}": share((own[..., 4] >= low) & (own[..., 4] < high))
            for low, high in _SIZES
        },
        "filled": {
            f"{low:g}-{min(high, 1):g}": share((shares >= low) & (shares < high))
            for low, high in _FILLED
        },
    }


def auc(score: Tensor, positive: Tensor) -> float:
    """Area under the curve: how often a positive scores above a negative, ties half."""
    order = score.argsort()
    ranks = torch.empty(len(score), dtype=torch.double)
    ranks[order] = torch.arange(1, len(score) + 1, dtype=torch.double)
    high = int(positive.sum())
    low = len(score) - high
    if not high or not low:
        return 0.5
    return float((ranks[positive].sum() - high * (high + 1) / 2) / (high * low))
